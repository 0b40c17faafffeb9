"""Features of a data set: the encoder's own, of every sample once, in a file that other programs read; bad input is named."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from launch.local.object_store import SeaweedFS
from pipeline.evaluation.embed import embed
from pipeline.evaluation.embedding.network import EmbedError
from pipeline.evaluation.embedding.settings import parse
from pipeline.evaluation.encoder import EncoderInvalid, layer_outputs, load_encoder
from pipeline.evaluation.export import export_encoder
from pipeline.mapping import ConfigError
from pipeline.stream.batch.quarantine import QuarantineFull
from shards.errors import ManifestMismatch, ShardError
from tests.conftest import ROOT
from tests.datasets import photographs, upload, write_dataset
from tests.pipeline.evaluation.embedded import columns, embedded, facts, settings, values_of
from tests.pipeline.evaluation.runs import write_run

COUNTS = [30, 1, 25]
TOTAL = sum(COUNTS)


def data_and_run(folder: Path) -> None:
    write_run(folder / "run", "caffenet")
    write_dataset(folder / "set", photographs(TOTAL), COUNTS)


@pytest.fixture(scope="module")
def given(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a run and a data set of 56 pictures of 128 x 96 in three shards."""
    return made_once("embed", data_and_run)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps torch on one core, because its threads spin while they wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures() -> list[Image.Image]:
    return [Image.open(io.BytesIO(each)) for each in photographs(TOTAL)]


def test_features_are_those_of_the_encoder_and_its_transform(given: Path, tmp_path: Path) -> None:
    outcome = embedded(given / "run", given / "set", tmp_path / "out.parquet", "--dtype", "float32")
    assert "56 pictures, 32 values each of pool5" in outcome.sentence
    module, transform = load_encoder(given / "run")
    inputs = torch.cat([transform.picture(picture) for picture in pictures()])
    with torch.no_grad():
        expected = module(inputs).mean((2, 3)).numpy()
    found = columns(tmp_path / "out.parquet")
    assert found["id"] == list(range(TOTAL))
    assert found["key"] == [f"{number:09d}" for number in range(TOTAL)]
    assert found["label"] == [number % 7 for number in range(TOTAL)]
    # the transform resizes with Pillow's bicubic filter, the stream with its own, so that a few grey levels differ
    errors = np.abs(found["embedding"] - expected).mean(1) / np.abs(expected - expected.mean(0)).mean()
    assert found["embedding"].shape == expected.shape
    assert errors.max() < 0.2
    nearest = ((found["embedding"][:, None] - expected[None]) ** 2).sum(2).argmin(1)
    assert (nearest == np.arange(TOTAL)).mean() > 0.9


def test_pictures_at_the_scale_of_training_give_the_very_features(given: Path, tmp_path: Path) -> None:
    """Shards with a shorter side of 256 need no resize, whichever way the middle is cut out."""
    data = photographs(9, 256, 300)
    write_dataset(tmp_path / "set", data, [9])
    module, transform = load_encoder(given / "run")
    with torch.no_grad():
        outputs = layer_outputs(module, torch.cat([transform.picture(Image.open(io.BytesIO(each))) for each in data]), ["relu3"])
    expected = outputs["relu3"].flatten(1).numpy()
    more = ("--layer", "relu3", "--pool", "none", "--dtype", "float32")
    for crop in ("scaled", "stored"):
        embedded(given / "run", tmp_path / "set", tmp_path / f"{crop}.parquet", *more, "--crop", crop)
        assert np.abs(values_of(tmp_path / f"{crop}.parquet") - expected).max() < 1e-4 * np.abs(expected).max()


def test_bf16_is_near_and_says_so(given: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        embedded(given / "run", given / "set", tmp_path / f"{precision}.parquet", "--precision", precision, "--limit", "9")
    assert facts(tmp_path / "bf16.parquet")["precision"] == "bf16"
    full, half = (values_of(tmp_path / f"{precision}.parquet").astype(float) for precision in ("fp32", "bf16"))
    assert 0 < abs(full - half).max() < 0.05 * abs(full).max()


def test_the_file_says_what_it_holds(given: Path, tmp_path: Path) -> None:
    export_encoder(str(given / "run"), tmp_path / "encoder.safetensors")
    embedded(tmp_path / "encoder.safetensors", given / "set", tmp_path / "out.parquet", "--pool", "none", "--layer", "pool2")
    found = facts(tmp_path / "out.parquet")
    assert values_of(tmp_path / "out.parquet").dtype == np.float16
    assert found["shape"] == [32, 13, 13]
    assert found["dimensions"] == values_of(tmp_path / "out.parquet").shape[1] == 32 * 13 * 13
    assert (found["layer"], found["pool"], found["samples"], found["unreadable"]) == ("pool2", "none", TOTAL, 0)
    assert found["classes"] == [f"class {number}" for number in range(7)]
    assert (found["trained"]["recipe"], found["trained"]["step"], found["trained"]["side"]) == ("features", 20, 227)
    # the run and its export are the same encoder
    outcome = embedded(given / "run", given / "set", tmp_path / "out.parquet", "--pool", "none", "--layer", "pool2")
    assert outcome.sentence.endswith("it was whole already")


def test_the_document_reads_the_file_as_it_says(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded(given / "run", given / "set", tmp_path / "features.parquet")
    monkeypatch.chdir(tmp_path)
    (block,) = (
        each for each in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "encoder.md").read_text(), re.DOTALL) if "parquet" in each
    )
    found: dict[str, object] = {}
    exec(block, found)  # noqa: S102 - the repository's own document
    assert np.array_equal(found["features"], values_of(tmp_path / "features.parquet"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("counts", "limit"), [([1], 0), ([20, 13], 27)], ids=str)
def test_data_sets_of_any_size(given: Path, tmp_path: Path, counts: list[int], limit: int) -> None:
    total = sum(counts)
    write_dataset(tmp_path / "set", photographs(total), counts, labels=False)
    outcome = embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet", "--limit", str(limit))
    found = columns(tmp_path / "out.parquet")
    assert outcome.finished
    assert facts(tmp_path / "out.parquet")["samples"] == (limit or total)
    assert found["id"] == list(range(limit or total))
    assert set(found["label"]) <= {-1}
    assert found["embedding"].shape == (limit or total, 32)


def test_an_empty_data_set_is_refused(given: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [], [0])
    with pytest.raises(ManifestMismatch, match="the data set is empty"):
        embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet")


def spoil(folder: Path) -> list[int]:
    """Writes a data set whose samples 3 and 40 are no pictures, and turns bits of 10 and 55 after they were indexed; returns all four."""
    data = photographs(TOTAL)
    for number in (3, 40):
        data[number] = b"no picture at all"
    manifest = write_dataset(folder, data, COUNTS)
    for number in (10, 55):
        (shard,), _ = manifest.locate([number])
        path = folder / manifest.records[int(shard)].name
        tar = path.read_bytes()
        place = tar.index(data[number]) + 500
        path.write_bytes(tar[:place] + bytes([tar[place] ^ 255]) + tar[place + 1 :])
    return [3, 10, 40, 55]


def test_unreadable_samples_are_named_and_leave_their_neighbours_alone(given: Path, tmp_path: Path) -> None:
    bad = spoil(tmp_path / "set")
    embedded(given / "run", given / "set", tmp_path / "good.parquet")
    outcome = embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet", "--data.max_bad_fraction", "0.1")
    assert "52 pictures" in outcome.sentence
    assert "4 unreadable samples are left out, see" in outcome.sentence
    good = [number for number in range(TOTAL) if number not in bad]
    assert columns(tmp_path / "out.parquet")["id"] == good
    assert np.array_equal(values_of(tmp_path / "out.parquet"), values_of(tmp_path / "good.parquet")[good])
    assert facts(tmp_path / "out.parquet")["unreadable"] == 4
    rows = [json.loads(line) for line in (tmp_path / "out.parquet.quarantine.jsonl").read_text().splitlines()]
    assert [(row["sample_id"], row["cause"]) for row in rows] == [(3, "undecodable"), (10, "digest"), (40, "undecodable"), (55, "digest")]
    assert [row["name"] for row in rows] == [f"{number:09d}.jpg" for number in bad]


def test_too_many_unreadable_samples_end_the_work_also_when_it_is_called_again(given: Path, tmp_path: Path) -> None:
    spoil(tmp_path / "set")
    with pytest.raises(QuarantineFull, match=r"data.max_bad_fraction allows 0\.04 of them"):
        embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet", "--data.max_bad_fraction", "0.04")
    for _ in range(4):  # the parts that are there are never too few for a whole file
        with pytest.raises((QuarantineFull, EmbedError), match=r"data.max_bad_fraction allows 0\.04 of them"):
            embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet", "--data.max_bad_fraction", "0.04")
    assert not (tmp_path / "out.parquet").exists()
    assert embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet", "--data.max_bad_fraction", "0.1").finished


def scaled_encoder(run: Path, target: Path, factor: float) -> Path:
    """An export whose first convolution's weights and bias are multiplied."""
    export_encoder(str(run), target)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    weights = load_file(target)
    for name in ("conv1.weight", "conv1.bias"):
        weights[name] = weights[name] * factor
    save_file(weights, target, metadata)
    return target


def test_values_that_float16_does_not_hold_are_refused_and_not_written_as_infinity(given: Path, tmp_path: Path) -> None:
    encoder = scaled_encoder(given / "run", tmp_path / "large.safetensors", 1e6)
    with pytest.raises(EmbedError, match=r"sample \d+ \(0000000\d\d\): relu1 has the value .*65504 at most\. Use --dtype float32"):
        embedded(encoder, given / "set", tmp_path / "out.parquet", "--layer", "relu1")
    embedded(encoder, given / "set", tmp_path / "out32.parquet", "--layer", "relu1", "--dtype", "float32")
    values = values_of(tmp_path / "out32.parquet")
    assert np.isfinite(values).all()
    assert values.max() > 65504
    broken = scaled_encoder(given / "run", tmp_path / "broken.safetensors", float("nan"))
    with pytest.raises(EmbedError, match=r"relu1 is not finite"):
        embedded(broken, given / "set", tmp_path / "out.parquet", "--layer", "relu1")


def test_other_formats_and_sizes_of_pictures(given: Path, tmp_path: Path) -> None:
    """PNG, grey, tiny and wide pictures: their features are near those of the encoder's own transform."""
    astronaut = pictures()[0].convert("RGB")
    versions = [
        (astronaut, "PNG"),
        (astronaut.convert("L"), "JPEG"),
        (astronaut.resize((20, 31)), "PNG"),
        (astronaut.resize((900, 120)), "JPEG"),
    ]
    data = []
    for picture, kind in versions:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        data.append(buffer.getvalue())
    write_dataset(tmp_path / "set", data, [len(data)])
    embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet")
    module, transform = load_encoder(given / "run")
    with torch.no_grad():
        expected = module(torch.cat([transform.picture(Image.open(io.BytesIO(each))) for each in data])).mean((2, 3)).numpy()
    found = values_of(tmp_path / "out.parquet").astype(np.float32)
    assert ((found[:, None] - expected[None]) ** 2).sum(2).argmin(1).tolist() == [0, 1, 2, 3]


def test_a_remote_store_gives_the_same_file(given: Path, tmp_path: Path, s3: SeaweedFS) -> None:
    url = upload(s3, "embed", given / "set")
    config = settings(given / "run", url, tmp_path / "remote.parquet")
    assert embed(replace(config, data=replace(config.data, storage_options=s3.options))).finished
    embedded(given / "run", given / "set", tmp_path / "local.parquet")
    assert (tmp_path / "remote.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


def test_a_shard_that_is_missing_ends_the_work_with_its_name(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "set", tmp_path / "set")
    (tmp_path / "set" / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar"):
        embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    shutil.copy(given / "set" / "shard-000002.tar", tmp_path / "set")
    assert embedded(given / "run", tmp_path / "set", tmp_path / "out.parquet").finished


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.crop", "random"], "data.crop: the middle of every picture is embedded"),
        (["--data.flip", "True"], "data.flip"),
        (["--data.unavailable", "substitute"], "data.unavailable: a file that lacks"),
        (["--data.cache", "/some/folder"], "data.cache: every byte is read once"),
        (["--batch", "0"], "batch: 0 is not at least 1"),
        (["--data.shards", ""], "data.shards: give the URL of one data set"),
        (["--layer", "rely3"], "no layer 'rely3'. Did you mean 'relu3'"),
    ],
)
def test_settings_that_can_not_be_followed_are_refused_by_name(given: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises((ConfigError, EncoderInvalid), match=message.replace("'", ".").replace("(", r"\(")):
        embedded(given / "run", given / "set", tmp_path / "out.parquet", *more)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_no_place_for_features_is_refused(given: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output: s3://bucket/out\.parquet"):
        parse([str(given / "run"), "s3://bucket/out.parquet", "--data.shards", str(given / "set")])
    with pytest.raises(EmbedError, match="its folder does not exist"):
        embedded(given / "run", given / "set", tmp_path / "nowhere" / "out.parquet")
    (tmp_path / "out.parquet").write_text("a diary")
    with pytest.raises(EmbedError, match=r"can't be read as features\. Name another output, or remove it"):
        embedded(given / "run", given / "set", tmp_path / "out.parquet")
    (tmp_path / "out").write_text("a diary")
    with pytest.raises(EmbedError, match="can't be made"):
        embedded(given / "run", given / "set", tmp_path / "out")
    assert (tmp_path / "out.parquet").read_text() == (tmp_path / "out").read_text() == "a diary"
