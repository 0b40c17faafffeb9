"""The table of a run: the same to the last digit on any number of ranks and after any kill, and right against figures made by hand."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.evaluation.inpainting import phases
from pipeline.evaluation.inpainting.settings import InpaintingConfig
from pipeline.evaluation.inpainting.work import evaluate
from pipeline.evaluation.rank import Rank
from pipeline.stream.held_back import held_back_ids
from pipeline.training.supervision.interruption import Interruption
from shards.dataset import manifest
from tests import warm
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset
from tests.launching import clean_environment, python, wait_until
from tests.pipeline.evaluation.inpainting.runs import HELD_BACK, MOST, SMALL, settings, table_of

FILES = ("pictures.csv", "table.csv", "grid.png")


def finish(config: InpaintingConfig, world_size: int, interruption: Interruption | None = None) -> bool:
    """Works with several ranks at the same time, each a thread of this process; says whether the table is whole."""
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [Rank(number, world_size, ranks_on_node=world_size) for number in range(world_size)]
        return all(outcome.finished for outcome in pool.map(lambda rank: evaluate(config, rank, interruption), ranks))


def assert_same(given: Path, out: Path) -> None:
    assert table_of(out) == table_of(given / "expected")
    assert all((out / name).read_bytes() == (given / "expected" / name).read_bytes() for name in FILES)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "table.json"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_table_on_any_number_of_ranks_and_threads(given: Path, tmp_path: Path, world_size: int) -> None:
    assert finish(settings(given, tmp_path / "out", "--workers", "2"), world_size)
    assert_same(given, tmp_path / "out")


class StopAfter(Interruption):
    """A signal that comes after the ranks have looked for one a number of times."""

    def __init__(self, looks: int) -> None:
        super().__init__(follow_parent=False)
        self.looks = looks

    @property
    def requested(self) -> str | None:
        self.looks -= 1
        return None if self.looks > 0 else "SIGTERM"


def test_stopped_at_random_places_and_damaged_the_same_table_appears(
    given: Path, tmp_path: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_POLL_SECONDS", 0.002)
    config, stops, out = settings(given, tmp_path / "out"), 0, tmp_path / "out"
    while not finish(config, draw.randint(1, 3), StopAfter(draw.randint(2, 25)) if stops < 6 else None):
        stops += 1
        parts = sorted(out.rglob("part-*.safetensors"))
        if parts and stops % 2:  # as a disk may damage a part between two attempts
            part = draw.choice(parts)
            data = bytearray(part.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            part.write_bytes(data)
    assert stops
    assert_same(given, out)


def test_after_a_kill_the_same_command_goes_on(given: Path, tmp_path: Path, draw: random.Random) -> None:
    out, enough = tmp_path / "out", draw.randint(1, 6)
    command = [python(), "launch/evaluate.py", "inpainting", str(given / "run"), "--out", str(out), "--methods", MOST, *SMALL]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(out.rglob("part-*.safetensors"))) >= enough, pause=0.002)
    warm.behind(psutil.Process(process.pid)).send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert not (out / "table.json").exists()
    assert finish(settings(given, out), 2)
    assert_same(given, out)


def test_the_figures_are_means_over_the_pictures_and_the_best_neighbour_is_pasted(given: Path) -> None:
    table = table_of(given / "expected")
    with open(given / "expected" / "pictures.csv") as file:
        rows = list(csv.DictReader(file))
    names = ["nearest_hog", "nearest_encoder", "mean", "telea", "context_encoder"]
    assert [each["name"] for each in table["methods"]] == names
    assert len(rows) == HELD_BACK * len(names)
    own = np.array([float(row["psnr"]) for row in rows if row["method"] == "context_encoder"])
    for method in table["methods"]:
        values = np.array([float(row["psnr"]) for row in rows if row["method"] == method["name"]])
        assert method["figures"]["psnr"]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert method["figures"]["psnr"]["lower"] < values.mean() < method["figures"]["psnr"]["upper"]
        if method["name"] != "context_encoder":
            assert method["checkpoint_less_method"]["psnr"]["mean"] == pytest.approx((own - values).mean(), rel=1e-9)
    assert {int(row["sample_id"]) for row in rows} == set(held_back_ids(manifest.load(str(given / "set")), HELD_BACK).tolist())


def test_a_neighbour_that_is_the_picture_itself_fills_the_hole_without_an_error(given: Path, tmp_path: Path) -> None:
    """The pictures of another data set are found again in a copy of it, at the same crop, whose rows come in another order."""
    pictures = photographs(9, 64, 64)  # the crop is the whole picture
    write_dataset(tmp_path / "judged", pictures, [9])
    write_dataset(tmp_path / "searched", [*photographs(7, 64, 64)[:4], *reversed(pictures)], [5, 8])
    sets = ("--data.shards", str(tmp_path / "judged"), "--train.shards", str(tmp_path / "searched"))
    assert evaluate(settings(given, tmp_path / "out", *sets, "--data.flip", "False", "--train_part", "3")).finished
    table = table_of(tmp_path / "out")
    assert table["training_pictures"] == 13
    for method in table["methods"][:2]:
        assert method["figures"]["l1"]["mean"] == pytest.approx(0, abs=1e-5)
        assert method["figures"]["psnr"] == {"mean": 100, "lower": 100, "upper": 100}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_table_on_any_number_of_ranks_and_nearly_that_of_a_cpu(given: Path, tmp_path: Path) -> None:
    for world_size in (1, 2):
        assert finish(settings(given, tmp_path / str(world_size)), world_size)
    assert table_of(tmp_path / "1") == table_of(tmp_path / "2")
    for found, expected in zip(table_of(tmp_path / "1")["methods"], table_of(given / "expected")["methods"], strict=True):
        assert found["figures"]["l1"]["mean"] == pytest.approx(expected["figures"]["l1"]["mean"], rel=1e-3)
