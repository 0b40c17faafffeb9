"""Several data sets in one stream: fixed samples of each per batch, own epochs, and as exact and elastic as one."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError, DataConfig, SourceConfig, parse, to_mapping
from pipeline.recipes import SETTINGS
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.stream.mixture import samples_per_dataset, spread
from pipeline.stream.order import OrderError
from shards.dataset.manifest import NAME
from shards.errors import ManifestMismatch
from tests.datasets import photographs, write_dataset

BATCH = 24
SIZES = {"birds": [30, 21], "boats": [17, 3, 20]}
SHARES = {"birds": 18, "boats": 6}  # 3 to 1
FIRST = {"birds": 0, "boats": 51}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for number, (name, counts) in enumerate(SIZES.items()):
        found[name] = tmp_path_factory.mktemp(name)
        write_dataset(found[name], photographs(sum(counts), 96, 112 + number), counts)
    return found


def stream_config(folders: dict[str, Path], **data: object) -> StreamConfig:
    weights = {"birds": 3.0, "boats": 1.0}
    sources = {name: SourceConfig(str(folder), weights[name]) for name, folder in folders.items()}
    settings: dict[str, object] = {"sources": sources, "shuffle_block": 8, "threads": 2, **data}
    return StreamConfig(DataConfig(**settings), image_size=64, global_batch=BATCH, seed=5)  # type: ignore[arg-type]


def source_of(sample: int) -> str:
    return "birds" if sample < FIRST["boats"] else "boats"


@pytest.mark.parametrize(("first", "second", "expected"), [(160, 160, 160), (160, 256, None), (160, None, None), (None, None, None)])
def test_the_stored_side_of_a_mixture_is_known_where_all_have_the_same(
    first: int | None, second: int | None, expected: int | None, tmp_path: Path
) -> None:
    built = {"birds": tmp_path / "birds", "boats": tmp_path / "boats"}
    for folder, resize in zip(built.values(), (first, second), strict=True):
        manifest = write_dataset(folder, photographs(24), [24])
        (folder / NAME).write_bytes(replace(manifest, settings={"resize": resize}).encode())
    with StreamLoader(stream_config(built)) as loader:
        assert loader.stored_side == expected


def take(config: StreamConfig, world: int, count: int, state: dict[str, int] | None = None) -> tuple[list[list[Batch]], dict[str, int]]:
    """The parts of `count` global batches and the state behind them."""
    with ExitStack() as stack:
        loaders = [stack.enter_context(StreamLoader(config, rank, world)) for rank in range(world)]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        parts = list(zip(*(list(itertools.islice(loader, count)) for loader in loaders), strict=True))
        states = [loader.state_dict() for loader in loaders]
    assert all(other == states[0] for other in states)
    return [list(part) for part in parts], states[0]


def whole(parts: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in ("images", "masks", "labels", "sample_ids", "keys")}


def assert_same(left: list[list[Batch]], right: list[list[Batch]]) -> None:
    for mine, theirs in zip(left, right, strict=True):
        ours, expected = whole(mine), whole(theirs)
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_every_batch_takes_the_same_share_of_each_source(folders: dict[str, Path]) -> None:
    batches, _ = take(stream_config(folders), 1, 20)
    for parts in batches:
        ids = whole(parts)["sample_ids"].tolist()
        assert Counter(map(source_of, ids)) == SHARES
        assert all(Counter(map(source_of, ids[start : start + 4])) == {"birds": 3, "boats": 1} for start in range(0, BATCH, 4))
        labels = [(sample - FIRST[source_of(sample)]) % 7 for sample in ids]
        assert whole(parts)["labels"].tolist() == labels


def test_each_source_keeps_its_own_epochs(folders: dict[str, Path]) -> None:
    """A source of n samples gives each of them once in every n // share batches, whatever the other does."""
    batches, state = take(stream_config(folders), 1, 20)
    ids = [whole(parts)["sample_ids"].tolist() for parts in batches]
    for name, share in SHARES.items():
        total = sum(SIZES[name])
        per_epoch = total // share
        for start in range(0, 20 - per_epoch + 1, per_epoch):
            seen = [sample for batch in ids[start : start + per_epoch] for sample in batch if source_of(sample) == name]
            assert len(seen) == len(set(seen)) == per_epoch * share
        epoch, index = divmod(20, per_epoch)
        assert (state[f"{name}.epoch"], state[f"{name}.consumed"]) == (epoch, index * share)


def test_two_sources_of_the_same_data_are_drawn_differently(folders: dict[str, Path]) -> None:
    config = stream_config({"birds": folders["birds"], "boats": folders["birds"]})
    (parts,), _ = take(config, 1, 1)
    batch = whole(parts)
    second = batch["sample_ids"] >= 51
    assert set((batch["sample_ids"][second] - 51).tolist()) - set(batch["sample_ids"][~second].tolist())
    assert len(set(batch["keys"].tolist())) == BATCH


@pytest.mark.parametrize("world", range(2, 9))
def test_same_batches_for_any_world_size(folders: dict[str, Path], world: int) -> None:
    expected, state = take(stream_config(folders), 1, 7)
    found, other = take(stream_config(folders, threads=1), world, 7)
    assert_same(found, expected)
    assert other == state


def test_a_world_that_changes_continues_every_source(folders: dict[str, Path]) -> None:
    expected, _ = take(stream_config(folders), 1, 12)
    state: dict[str, int] | None = None
    for number in range(12):
        found, state = take(stream_config(folders), 1 + number * 5 % 8, 1, state)
        assert_same(found, expected[number : number + 1])


def test_a_bad_sample_is_replaced_from_its_own_source(folders: dict[str, Path], tmp_path: Path) -> None:
    pictures = photographs(40, 96, 113)
    pictures[7] = pictures[7][:500]
    write_dataset(tmp_path / "damaged", pictures, SIZES["boats"])
    config = stream_config({**folders, "boats": tmp_path / "damaged"}, max_bad_fraction=0.1)
    config = replace(config, quarantine=tmp_path / "quarantine.jsonl")
    expected, _ = take(config, 1, 8)
    for parts in expected:
        ids = whole(parts)["sample_ids"].tolist()
        assert Counter(map(source_of, ids)) == SHARES
        assert FIRST["boats"] + 7 not in ids
    found, _ = take(config, 3, 8)
    assert_same(found, expected)
    assert (tmp_path / "quarantine.jsonl").read_text().count(f'"sample_id": {FIRST["boats"] + 7},') == 1


def test_positions_of_other_mixtures_are_refused(folders: dict[str, Path]) -> None:
    with StreamLoader(stream_config(folders)) as loader:
        state = loader.state_dict()
        with pytest.raises(ManifestMismatch, match=r"data\.sources\.boats\.shards .* holds other shards now"):
            loader.load_state_dict({**state, "boats.data_set": 1})
        with pytest.raises(OrderError, match="7 lanes of birds"):
            loader.load_state_dict({**state, "birds.lanes": 7})
        with pytest.raises(ManifestMismatch, match=r"other data\.sources"):
            loader.load_state_dict({**state, "cars.epoch": 0})
        with pytest.raises(ManifestMismatch, match=r"other data\.sources \(none is called boats\)"):
            loader.load_state_dict({key: value for key, value in state.items() if not key.startswith("boats.")})


def test_a_source_that_is_not_there_is_named_and_leaves_nothing_open(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestMismatch, match="empty holds no shards"):
        StreamLoader(stream_config({**folders, "boats": tmp_path / "empty"}))


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8),
    global_batch=st.integers(8, 4096),
    lanes=st.integers(1, 128),
)
def test_shares_follow_the_weights_and_fill_the_batch(weights: list[float], global_batch: int, lanes: int) -> None:
    try:
        counts = samples_per_dataset(weights, global_batch, lanes)
    except OrderError:
        assert global_batch < len(weights) * lanes
        return
    assert sum(counts) == global_batch
    granule = max(1, np.gcd(lanes, global_batch) // 8)
    assert min(counts) > 0
    raised = sum(max(0.0, granule - weight / sum(weights) * global_batch) for weight in weights)  # what the smallest were given
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - weight / sum(weights) * global_batch) <= granule + raised + 1e-6


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_places_are_spread_evenly(counts: list[int]) -> None:
    places = spread(counts)
    assert sorted(place for own in places for place in own.tolist()) == list(range(sum(counts)))
    for count, own in zip(counts, places, strict=True):
        assert (np.diff(own) > 0).all()
        ideal = (np.arange(count) + 0.5) * sum(counts) / count
        assert np.abs(own + 0.5 - ideal).max() <= len(counts)


def test_sources_come_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text("data: {sources: {birds: {shards: /birds, weight: 3}}}")
    line = [
        "--config",
        str(tmp_path / "mixed.yaml"),
        "--data.sources.boats.shards",
        "s3://key:word@host/boats",
        "--data.sources.birds.weight=2",
    ]
    config = parse(SETTINGS, line)
    assert config.data.sources == {"birds": SourceConfig("/birds", 2.0), "boats": SourceConfig("s3://key:word@host/boats")}
    assert "word" not in str(to_mapping(config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.shards", "x", "--data.sources.a.shards", "y"], "data.shards: is given beside data.sources"),
        (["--data.sources.a.weight", "1"], r"data.sources.a.shards: give the URL"),
        (["--data.sources.a.shards", "x", "--data.sources.a.weight", "0"], r"data.sources.a.weight: 0.0 is not above 0"),
    ],
)
def test_impossible_sources_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SETTINGS, arguments)


def test_sources_in_another_order_are_refused(folders: dict[str, Path]) -> None:
    with StreamLoader(stream_config(folders)) as loader:
        state = loader.state_dict()
    turned = stream_config(folders)
    turned = replace(turned, data=replace(turned.data, sources=dict(reversed(turned.data.sources.items()))))
    with StreamLoader(turned) as loader, pytest.raises(ManifestMismatch, match="order"):
        loader.load_state_dict(state)


def test_a_mixture_goes_on_with_any_batch_that_is_a_multiple_of_the_lanes(folders: dict[str, Path]) -> None:
    config = stream_config(folders, lanes=8)
    _, state = take(config, 1, 1)
    for batch in (8, 16, 40):
        _, other = take(replace(config, global_batch=batch), 2, 1, state)
        assert other["birds.epoch"] <= 1
