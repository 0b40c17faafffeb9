"""The table of a run: the same to the last digit on any number of ranks and after any kill, and right against figures made by hand."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from launch.evaluate import main
from pipeline.evaluation.inpainting import phases
from pipeline.evaluation.inpainting.parts import InpaintingError
from pipeline.evaluation.inpainting.settings import METHODS, InpaintingConfig, parse
from pipeline.evaluation.inpainting.work import evaluate
from pipeline.evaluation.rank import Rank
from pipeline.mapping import ConfigError
from pipeline.training.supervision.interruption import Interruption
from shards.errors import ExplainedError
from tests import warm
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset
from tests.launching import clean_environment, python, wait_until
from tests.pipeline.evaluation.inpainting.runs import write_run

COUNTS, HELD_BACK = [50, 40, 30], 12
SMALL = ("--batch", "2", "--part", "2", "--train_part", "16", "--workers", "1", "--data.threads", "1", "--pictures", "3")
MOST = "mean,telea,nearest_hog,nearest_encoder"
FILES = ("pictures.csv", "table.csv", "grid.png")


def run_and_data(folder: Path) -> None:
    manifest = write_dataset(folder / "set", photographs(sum(COUNTS), 80, 72), COUNTS)
    write_run(folder / "run", folder / "set", manifest, HELD_BACK)
    write_dataset(folder / "other", photographs(9, 80, 90), [9])
    assert evaluate(settings(folder, folder / "expected")).finished


@pytest.fixture(scope="module")
def given(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a run, its data set, another data set of 9 pictures, and the table of the 12 pictures that the run holds back."""
    return made_once("table of inpainting", run_and_data)


def settings(given: Path, out: Path, *more: str) -> InpaintingConfig:
    return parse([str(given / "run"), "--out", str(out), "--methods", MOST, *SMALL, *more])


def table_of(folder: Path) -> dict[str, Any]:
    """The table of a folder without the seconds that it took."""
    found: dict[str, Any] = json.loads((folder / "table.json").read_bytes())
    assert found.pop("seconds").keys() >= {"decode", "network", "figures"}
    return found


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
    assert {int(row["sample_id"]) for row in rows} == set(table_held_back(given))


def table_held_back(given: Path) -> list[int]:
    from pipeline.stream.held_back import held_back_ids
    from shards.dataset import manifest

    return held_back_ids(manifest.load(str(given / "set")), HELD_BACK).tolist()


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


def test_the_command_prints_the_table_beside_its_files_in_the_run_folder(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(given / "run", tmp_path / "run")
    arguments = ["inpainting", str(tmp_path / "run"), "--data.shards", str(given / "other"), "--limit", "5", "--methods", "mean", *SMALL]
    assert main([*arguments, "--save", "True"]) == 0
    said = capsys.readouterr().out
    assert "5 pictures of 64 x 64 pixels from" in said
    assert "Network and decoder together: " in said
    out = tmp_path / "run" / "inpainting" / "step_000000020"
    assert {path.name for path in out.iterdir()} == {*FILES, "table.json", "fills"}
    assert len(list((out / "fills" / "truth").glob("*.png"))) == len(list((out / "fills" / "context_encoder").glob("*.png"))) == 5
    assert main(arguments) == 0
    assert "was whole already" in capsys.readouterr().out
    assert main([*arguments[:-1], "4"]) == 1
    assert "grid is 3 there and 4 now. Name another folder with --out" in capsys.readouterr().err


def test_pictures_that_were_trained_on_are_judged_with_a_warning_and_find_no_neighbours(given: Path, tmp_path: Path) -> None:
    outcome = evaluate(settings(given, tmp_path / "out", "--data.shards", str(given / "set"), "--limit", "4"))
    assert "is the data set that the run was TRAINED on" in outcome.text
    assert [each["name"] for each in table_of(tmp_path / "out")["methods"]] == ["mean", "telea", "context_encoder"]
    more = ("--data.shards", str(given / "other"), "--train.shards", str(given / "other"))
    with pytest.raises(InpaintingError, match=r"train\.shards: is the data set that is judged on"):
        evaluate(settings(given, tmp_path / "again", *more))


def test_unreadable_pictures_are_counted_left_out_and_refused_above_the_limit(given: Path, tmp_path: Path) -> None:
    pictures = photographs(6, 80, 80)
    pictures[2], pictures[4] = b"no picture", pictures[4][:300]
    write_dataset(tmp_path / "bad", pictures, [6])
    more = ("--data.shards", str(tmp_path / "bad"), "--methods", "mean")
    with pytest.raises(InpaintingError, match=r"data\.shards: 2 of 6 pictures are unreadable, data\.max_bad_fraction allows 0\.0001"):
        evaluate(settings(given, tmp_path / "out", *more))
    named = [json.loads(line) for line in (tmp_path / "out" / "unreadable.jsonl").read_text().splitlines()]
    assert [each["sample_id"] for each in named] == [2, 4]
    outcome = evaluate(settings(given, tmp_path / "out", *more, "--data.max_bad_fraction", "0.5"))
    assert "2 unreadable pictures are left out of those that are judged on" in outcome.text
    assert (table_of(tmp_path / "out")["pictures"], table_of(tmp_path / "out")["unreadable"]) == (4, 2)
    more = ("--train.shards", str(tmp_path / "bad"), "--data.max_bad_fraction", "0.5")
    outcome = evaluate(settings(given, tmp_path / "searched", *more))
    assert "2 unreadable pictures are left out of those that are searched for neighbours" in outcome.text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--methods", "mean,tela"], r"methods: 'tela' is none of .*Did you mean 'telea'\?"),
        (["--mask.kind", "region", "--mask.overlap", "0"], r"mask: .*step 20 paints the central region alone"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--train.shards", "x", "--methods", "mean"], r"train\.shards: only nearest_hog and nearest_encoder paste"),
        (["--fid", "weights"], r"fid: FID is not computed here.*--save True.*pytorch_fid"),
        (["--lpips", "lpips.pt"], r"lpips\.pt: no such file of LPIPS's weights"),
        (["--step", "7"], "step_000000007.*no such checkpoint"),
        (["--data.unavailable", "substitute"], r"data\.unavailable: .*Leave it at stop"),
        (["--batch", "0"], r"batch: 0 is not at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_can_not_be_followed_is_named(
    given: Path, tmp_path: Path, more: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExplainedError, match=expected):
        evaluate(parse([str(given / "run"), "--out", "out", *more]))


def test_a_run_that_fills_no_holes_holds_nothing_back_or_has_diverged_is_named(given: Path, tmp_path: Path) -> None:
    from shards.dataset import manifest

    found = manifest.load(str(given / "set"))
    write_run(tmp_path / "plain", given / "set", found, 5, recipe=("--recipe", "autoencoder", "--method.width", "12"))
    write_run(tmp_path / "all", given / "set", found, 0)
    write_run(tmp_path / "nan", given / "set", found, HELD_BACK, spoil=float("nan"))
    (tmp_path / "moved").mkdir()
    write_run(tmp_path / "gone", tmp_path / "moved", found, 5)
    for name, expected in (
        ("plain", "drops no pixels, so its network fills no holes"),
        ("all", r"holds no pictures back .*Name pictures to judge on with --data\.shards"),
        ("nan", r"picture \d+ \(sample \d+\): Context encoder paints values that are no numbers\. Has the training diverged\?"),
        ("gone", r"the data set that the run was trained on can't be read: .*with --data\.shards"),
        ("none", "holds no checkpoint"),
    ):
        with pytest.raises(ExplainedError, match=expected):
            evaluate(parse([str(tmp_path / name), "--out", str(tmp_path / "out"), "--methods", "none", *SMALL]))


def test_defaults_are_those_of_the_run(given: Path, tmp_path: Path) -> None:
    from shards.dataset import manifest

    found = manifest.load(str(given / "set"))
    more = (
        "--data.crop",
        "random_resized",
        "--method.mask.kind",
        "block",
        "--method.mask.overlap",
        "0",
        "--method.mask.max_fraction",
        "0.2",
    )
    write_run(tmp_path / "run", given / "set", found, HELD_BACK, *more)
    config = parse([str(tmp_path / "run")])
    assert (config.data.crop, config.mask.kind, config.mask.max_fraction, config.names) == ("random_resized", "block", 0.2, METHODS)
    config = parse([str(tmp_path / "run"), "--mask.max_fraction", "0.3", "--methods", "none"])
    assert (config.mask.kind, config.mask.max_fraction, config.names) == ("block", 0.3, ())
    with pytest.raises(ConfigError, match="no such setting"):
        parse([str(tmp_path / "run"), "--mask.fraction", "1"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_table_on_any_number_of_ranks_and_nearly_that_of_a_cpu(given: Path, tmp_path: Path) -> None:
    for world_size in (1, 2):
        assert finish(settings(given, tmp_path / str(world_size)), world_size)
    assert table_of(tmp_path / "1") == table_of(tmp_path / "2")
    for found, expected in zip(table_of(tmp_path / "1")["methods"], table_of(given / "expected")["methods"], strict=True):
        assert found["figures"]["l1"]["mean"] == pytest.approx(expected["figures"]["l1"]["mean"], rel=1e-3)
