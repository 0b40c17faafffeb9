"""Real photographs in shards of the real builder: plain WebDataset reads them, and every recipe trains on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import webdataset

from pipeline.training.checkpoint.store import CheckpointStore, verify
from pipeline.training.record.run_folder import read_lines
from shards.dataset.manifest import load
from shards.store import Store
from shards.tar.samples import scan
from tests.launching import launch, setting_list

ONE_PICTURE = ["--training.global_batch", "1", "--method.optimiser.learning_rate", "1e-3", "--method.output_gain", "1"]
INPAINTING = ["--training.global_batch", "4", "--method.batch_norm_group", "4", "--method.width", "8", "--method.bottleneck", "32"]
NARROW = ["--method.width", "12"]  # an eighth of the published network
TRAINED = [  # every recipe and every data set, not each with each: a recipe sees no more of a data set than its crops
    ("features", "imagenet_shards", 60, ONE_PICTURE),  # the published network, here and nowhere else
    ("autoencoder", "tiny_shards", 100, [*ONE_PICTURE, *NARROW]),
    ("inpainting", "imagenet_shards", 100, INPAINTING),
    ("inpainting", "tiny_shards", 100, INPAINTING),
]
PLAYER = {"features": "context_encoder", "autoencoder": "context_encoder", "inpainting": "generator"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("recipe", "dataset", "steps", "more"), TRAINED, ids=[f"{recipe}-{dataset}" for recipe, dataset, *_ in TRAINED])
def test_every_recipe_trains(
    request: pytest.FixtureRequest, tmp_path: Path, recipe: str, dataset: str, steps: int, more: list[str]
) -> None:
    shards: Path = request.getfixturevalue(dataset)
    settings = setting_list(shards, tmp_path / "run", steps, "--recipe", recipe, *more)
    done = launch(
        1, *settings, "--evaluation.pictures", "16", "--training.log_every", "20", "--training.pictures_every", str(steps // 2), timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_lines(tmp_path / "run" / "history.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    losses = [row["losses"][PLAYER[recipe]]["reconstruction"] for row in rows]
    assert all(math.isfinite(value) for row in rows for parts in row["losses"].values() for value in parts.values())
    assert sum(losses[-steps // 2 :]) / (steps // 2) < 0.9 * sum(losses[:5]) / 5
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    assert read_lines(tmp_path / "run" / "events.jsonl")[-1]["reason"] == "finished"
    store = Store(str(tmp_path / "run" / "checkpoints"))
    assert CheckpointStore(store).steps() == [steps]
    assert verify(store, steps) > 1e5


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["imagenet_shards", "tiny_shards"])
def test_plain_webdataset_reads_every_sample_with_the_same_keys_and_bytes(request: pytest.FixtureRequest, dataset: str) -> None:
    folder: Path = request.getfixturevalue(dataset)
    manifest = load(str(folder))
    store = Store(str(folder))
    total = 0
    for shard, record in enumerate(manifest.records):
        path = folder / record.name
        data = path.read_bytes()
        rows = manifest.read_index(store, shard).rows
        with open(path, "rb") as tar:
            ours = list(scan(tar, record.name))
        theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
        assert [sample["__key__"] for sample in theirs] == [sample.key for sample in ours]
        for row, sample in zip(rows, theirs, strict=True):
            offset, length = int(row["offset"]), int(row["length"])
            assert sample["jpg"] == data[offset : offset + length]
            if manifest.classes:
                assert int(sample["cls"]) == int(row["label"])
                assert manifest.classes[int(row["label"])] in json.loads(sample["json"])["source"]
        total += len(theirs)
    assert total == manifest.total_samples == (800 if dataset == "imagenet_shards" else 2_500)
