"""Embedding on any number of ranks, after kills and with damaged parts: always the same file, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

from pipeline.evaluation.embed import embed
from pipeline.evaluation.embedding.network import EmbedError
from pipeline.evaluation.embedding.output import Output
from pipeline.evaluation.embedding.part_folder import PartFolder
from pipeline.evaluation.embedding.settings import check_launcher
from pipeline.evaluation.embedding.table import OtherFeatures, refuse_other, schema_of
from pipeline.evaluation.embedding.units import Unit, cut_units, in_turn, rows_of_unit
from pipeline.evaluation.rank import Rank, RankInvalid
from pipeline.mapping import ConfigError
from tests import warm
from tests.conftest import ROOT
from tests.datasets import photographs, write_dataset
from tests.launching import ACCELERATE, CPU, clean_environment, python, wait_until
from tests.pipeline.evaluation.embedded import embedded, settings, values_of
from tests.pipeline.evaluation.runs import write_run

COUNTS = [50, 3, 1, 46, 60]
SMALL = ("--batch", "4", "--part", "8", "--workers", "1", "--data.threads", "1")
UNITS = 20


def data_and_features(folder: Path) -> None:
    write_run(folder / "run", "caffenet")
    write_dataset(folder / "set", photographs(sum(COUNTS)), COUNTS)
    assert embedded(folder / "run", folder / "set", folder / "expected.parquet", *SMALL).finished


@pytest.fixture(scope="module")
def given(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a run, a data set of 160 pictures, and their features, made in 20 parts by one rank."""
    return made_once("embed on ranks", data_and_features)


def finish(given: Path, output: Path, world_size: int, *more: str) -> int:
    """Embeds with several ranks at the same time, each a thread of this process; returns the number of pictures that they embedded."""
    config = settings(given / "run", given / "set", output, *SMALL, *more)
    with ThreadPoolExecutor(world_size) as pool:
        ranks = [Rank(number, world_size, ranks_on_node=world_size) for number in range(world_size)]
        outcomes = list(pool.map(lambda rank: embed(config, rank), ranks))
    assert all(outcome.finished for outcome in outcomes)
    return sum(outcome.pictures for outcome in outcomes)


def assert_same(given: Path, output: Path) -> None:
    assert output.read_bytes() == (given / "expected.parquet").read_bytes()
    assert not output.with_name(f"{output.name}.parts").exists()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_file_at_any_number_of_ranks_workers_and_threads(given: Path, tmp_path: Path, world_size: int) -> None:
    assert finish(given, tmp_path / "out.parquet", world_size, "--workers", "3", "--data.threads", "2") == 160
    assert_same(given, tmp_path / "out.parquet")


def test_a_rank_does_the_work_of_those_that_never_came(given: Path, tmp_path: Path) -> None:
    assert embedded(given / "run", given / "set", tmp_path / "out.parquet", *SMALL, rank=Rank(2, 5)).finished
    assert_same(given, tmp_path / "out.parquet")


def start(given: Path, output: Path) -> subprocess.Popen[str]:
    """Starts the program on one rank."""
    command = [python(), "launch/embed.py", str(given / "run"), "--data.shards", str(given / "set"), *SMALL, str(output)]
    environment = clean_environment()
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def parts_of(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.parts").glob("part-*.parquet"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_after_a_kill_the_same_command_goes_on_with_any_number_of_ranks(
    given: Path, tmp_path: Path, draw: random.Random, number: signal.Signals
) -> None:
    output, enough = tmp_path / "out.parquet", draw.randint(1, 5)
    process = start(given, output)
    wait_until(lambda: len(parts_of(output)) >= enough, pause=0.005)
    warm.behind(psutil.Process(process.pid)).send_signal(number)
    said, complained = process.communicate(timeout=120)
    assert not output.exists()
    before = parts_of(output)
    assert enough <= len(before) < UNITS
    if number == signal.SIGTERM:
        assert process.returncode == 130, complained
        done = 8 * len(before)
        assert f"out.parquet: interrupted (SIGTERM) after {done} of 160 pictures. The same command continues" in said
    made = finish(given, output, draw.randint(2, 3))
    assert made == 160 - 8 * len(before)  # parts that were there are not made anew
    assert_same(given, output)


def in_parts(given: Path, output: Path) -> PartFolder:
    """Embeds into a folder, and takes back that it is complete."""
    assert embedded(given / "run", given / "set", output, *SMALL).finished
    (output / "_complete.json").unlink()
    return PartFolder(output, {}, cut_units(sum(COUNTS), 8))


def facts_of(parts: PartFolder) -> dict[str, object]:
    """The facts that a folder's parts were made from."""
    found: dict[str, object] = json.loads((parts.folder / "_features.json").read_text())
    return found


def test_a_folder_of_parts_is_a_data_set_of_its_own(given: Path, tmp_path: Path) -> None:
    in_parts(given, tmp_path / "out")
    outcome = embedded(given / "run", given / "set", tmp_path / "out", *SMALL)
    assert "160 pictures, 32 values each of pool5" in outcome.sentence
    table = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    assert sorted(table.column("id").to_pylist()) == list(range(160))
    assert (values_of(tmp_path / "out") == values_of(given / "expected.parquet")).all()
    assert {path.name[0] for path in (tmp_path / "out").iterdir()} == {"p", "_"}
    assert embedded(given / "run", given / "set", tmp_path / "out", *SMALL).sentence.endswith("it was whole already")


def test_a_damaged_part_is_noticed_and_made_anew(
    given: Path, tmp_path: Path, draw: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = in_parts(given, tmp_path / "out.parquet.parts")
    one, other, third = (parts.part(unit) for unit in draw.sample(list(parts.units), 3))
    data, features = bytearray(one.read_bytes()), pyarrow.parquet.read_metadata(one).row_group(0).column(3)
    end = features.data_page_offset + features.total_compressed_size
    data[end - draw.randint(20, 300)] ^= 1 << draw.randrange(8)  # in the features, which only the pages' checksums guard
    one.write_bytes(data)
    other.write_bytes(other.read_bytes()[: draw.randrange(other.stat().st_size)])
    third.write_bytes(next(path for path in parts_of(tmp_path / "out.parquet") if path not in (one, other, third)).read_bytes())
    finish(given, tmp_path / "out.parquet", 1)
    assert_same(given, tmp_path / "out.parquet")
    said = capsys.readouterr().err
    assert all(f"warning: {path}" in said for path in (one, other, third))
    assert said.count("It is made anew") == 3


def test_parts_of_another_encoder_are_refused_by_name_and_not_mixed_in(given: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", "caffenet", seed=4)
    in_parts(given, tmp_path / "out.parquet.parts")
    with pytest.raises(OtherFeatures, match=r"out\.parquet\.parts: holds other features: encoder is '\w+' there and '\w+' now\. Name"):
        embedded(tmp_path / "other", given / "set", tmp_path / "out.parquet", *SMALL)
    with pytest.raises(OtherFeatures, match="layer is 'pool5' there and 'relu2' now"):
        embedded(given / "run", given / "set", tmp_path / "out.parquet", *SMALL, "--layer", "relu2")
    (tmp_path / "out.parquet.parts" / "_features.json").unlink()  # as if somebody had put the parts together by hand
    with pytest.raises(OtherFeatures, match=r"part-\d+\.parquet: holds other features: encoder is"):
        embedded(tmp_path / "other", given / "set", tmp_path / "out.parquet", *SMALL)
    whole = tmp_path / "whole.parquet"
    whole.write_bytes((given / "expected.parquet").read_bytes())
    with pytest.raises(OtherFeatures, match=r"whole\.parquet: holds other features: encoder is"):
        embedded(tmp_path / "other", given / "set", whole, *SMALL)
    with pytest.raises(OtherFeatures, match=r"'turned' there and 'stored' now\. Continue it with --data\.orientation turned, name"):
        embedded(given / "run", given / "set", whole, *SMALL, "--data.orientation", "stored")
    assert whole.read_bytes() == (given / "expected.parquet").read_bytes()


def test_features_of_an_earlier_version_go_on_with_pictures_as_they_are_stored() -> None:
    facts = {"format": "1", "layer": "pool5"}
    turned = {**facts, "orientation": "turned"}
    refuse_other(Path("out"), facts, facts)
    refuse_other(Path("out"), turned, turned)
    with pytest.raises(OtherFeatures, match=r"'stored' there and 'turned' now\. Continue it with --data\.orientation stored, name another"):
        refuse_other(Path("out"), facts, turned)
    with pytest.raises(OtherFeatures, match=r"now\. Name another output"):
        refuse_other(Path("out"), {**facts, "layer": "conv1"}, turned)


def test_other_settings_may_follow_where_no_part_was_made(given: Path, tmp_path: Path) -> None:
    PartFolder(tmp_path / "out.parquet.parts", {"layer": "conv1"}, cut_units(9, 3)).open()
    finish(given, tmp_path / "out.parquet", 1)
    assert_same(given, tmp_path / "out.parquet")


def test_a_rank_waits_for_a_unit_of_another_and_takes_it_when_that_rank_ends(given: Path, tmp_path: Path) -> None:
    parts = in_parts(given, tmp_path / "out.parquet.parts")
    unit = parts.units[7]
    parts.part(unit).unlink()
    (parts.folder / "_claims").mkdir(exist_ok=True)
    claim = parts.claim(unit)
    assert claim is not None
    assert parts.claim(unit) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(finish, given, tmp_path / "out.parquet", 1)
        with pytest.raises(TimeoutError):
            waiting.result(3)
        assert not parts.part(unit).exists()
        claim.release(done=False)
        waiting.result(120)
    assert_same(given, tmp_path / "out.parquet")


def test_a_join_that_is_cut_short_leaves_all_parts_for_the_next(given: Path, tmp_path: Path) -> None:
    parts = in_parts(given, tmp_path / "out.parquet.parts")
    output = Output(tmp_path / "out.parquet", facts_of(parts), parts.units)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.finish(schema_of(32, "float16"), 64, lambda _: {}, print, stop)
    assert len(parts_of(tmp_path / "out.parquet")) == UNITS
    assert not output.finished
    finish(given, tmp_path / "out.parquet", 1)
    assert_same(given, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank(0, 1, 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Rank(5, 8, 1, 4)),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: is none of the WORLD_SIZE=2 ranks"),
        ({"RANK": "first"}, "first.*Start with accelerate launch"),
    ],
    ids=str,
)
def test_the_launcher_says_which_rank_this_is(environment: dict[str, str], expected: Rank | str) -> None:
    if isinstance(expected, Rank):
        assert Rank.of_environment(environment) == expected
    else:
        with pytest.raises(RankInvalid, match=expected):
            Rank.of_environment(environment)


def test_a_precision_of_the_launcher_that_would_be_ignored_is_refused(given: Path, tmp_path: Path) -> None:
    config = settings(given / "run", given / "set", tmp_path / "out.parquet")
    for precision in ("no", "fp32"):
        check_launcher(config, {"ACCELERATE_MIXED_PRECISION": precision})
    with pytest.raises(ConfigError, match=r"the launcher has mixed_precision bf16, the settings fp32\. Set"):
        check_launcher(config, {"ACCELERATE_MIXED_PRECISION": "bf16"})


def test_a_disk_that_is_full_is_an_explained_error(given: Path, tmp_path: Path) -> None:
    parts = PartFolder(tmp_path / "parts", {}, cut_units(9, 3))
    parts.open()
    parts.part(parts.units[0]).mkdir()  # a name that can't be replaced
    with pytest.raises(EmbedError, match=r"can't be written: .*The same command continues"), parts.writing(parts.units[0]) as file:
        file.write(b"x")


def test_units_are_whole_batches_and_cover_every_sample_once(draw: random.Random) -> None:
    for _ in range(200):
        samples, batch, most, row_bytes = draw.randint(0, 500), draw.randint(1, 64), draw.randint(1, 300), draw.choice((2, 512, 1 << 22))
        rows = rows_of_unit(most, batch, row_bytes)
        assert rows % batch == 0
        assert rows == batch or (rows <= most and rows * row_bytes <= 64 << 20)
        units = cut_units(samples, rows)
        assert [sample for unit in units for ids in unit.batches(batch) for sample in ids] == list(range(samples))
        assert all(len(ids) == batch or ids.stop == samples for unit in units for ids in unit.batches(batch))
        world_size = draw.randint(1, 9)
        firsts: list[Unit] = []
        for rank in range(world_size):
            turn = in_turn(units, rank, world_size)
            assert sorted(turn, key=lambda unit: unit.number) == units
            firsts += turn[:1]
        assert len({unit.number for unit in firsts}) == min(world_size, len(units))


@pytest.mark.slow
def test_a_launcher_starts_the_ranks(given: Path, tmp_path: Path) -> None:
    launcher = [python(), ACCELERATE, "launch", "--config_file", str(CPU), "--num_processes", "2"]
    command = [*launcher, "launch/embed.py", str(given / "run"), "--data.shards", str(given / "set"), *SMALL, str(tmp_path / "out.parquet")]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("out.parquet: 160 pictures, 32 values each of pool5 (pool average, float16)") == 1
    assert_same(given, tmp_path / "out.parquet")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_file_at_any_number_of_ranks_and_nearly_the_features_of_a_cpu(given: Path, tmp_path: Path) -> None:
    for world_size in (1, 2):
        finish(given, tmp_path / f"{world_size}.parquet", world_size)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    found, expected = (values_of(path).astype(float) for path in (tmp_path / "1.parquet", given / "expected.parquet"))
    assert abs(found - expected).max() < 1e-2 * abs(expected).max()
