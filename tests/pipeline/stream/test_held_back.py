"""Held-back samples are a pure function of manifest and seed, and no batch of any epoch, rank or attempt holds one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig, SourceConfig
from pipeline.stream.fixed import choice_of, held_back_choice
from pipeline.stream.held_back import TrainedSamples, held_back_count, held_back_ids
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.order import OrderError, SampleOrder
from tests.datasets import photographs, write_dataset
from tests.pipeline.stream.test_order import make_manifest


@pytest.mark.parametrize(
    ("total", "fraction", "count"),
    [
        (79, 0.01, 0),  # too few to spare any
        (80, 0.01, 8),
        (220, 0.01, 22),  # a tenth
        (2_560, 0.01, 256),
        (20_000, 0.01, 256),
        (30_000, 0.01, 300),  # the fraction
        (10**9, 0.01, 50_000),
        (1_000, 0.5, 500),
        (10**6, 0.0, 0),
    ],
)
def test_a_small_share_is_held_back_and_some_hundreds_where_there_are_as_many(total: int, fraction: float, count: int) -> None:
    assert held_back_count(total, fraction) == count


def test_one_sample_of_each_stratum_is_held_back() -> None:
    manifest, other = make_manifest([400, 600]), make_manifest([600, 400])
    ids = held_back_ids(manifest, 100)
    assert (ids // 10).tolist() == list(range(100))
    assert ids.tolist() == held_back_ids(make_manifest([400, 600]), 100).tolist()
    assert ids.tolist() != held_back_ids(other, 100).tolist()
    assert {int(each) % 10 for each in (*ids, *held_back_ids(other, 100))} == set(range(10)), "every sample of a stratum can be drawn"


counts = st.lists(st.integers(0, 120), min_size=1, max_size=20).filter(lambda found: sum(found) >= 2)


@settings(max_examples=100, deadline=None)
@given(counts, st.data())
def test_trained_samples_are_numbered_without_gaps(shards: list[int], data: st.DataObject) -> None:
    manifest = make_manifest(shards)
    held_back = data.draw(st.integers(0, manifest.total_samples // 2))
    samples = TrainedSamples(manifest, held_back)
    every = set(range(manifest.total_samples)) - set(samples.held_back.tolist())
    assert samples.ids(np.arange(samples.total)).tolist() == sorted(every)
    in_shard = np.bincount(manifest.locate(sorted(every))[0], minlength=len(shards))
    assert samples.counts.tolist() == in_shard.tolist()


@settings(max_examples=15, deadline=None)
@given(counts, st.integers(0, 2**40), st.integers(1, 24), st.sampled_from(["drop", "pad"]), st.data())
def test_no_batch_of_any_number_of_ranks_holds_a_held_back_sample(
    shards: list[int], seed: int, batch: int, tail: str, data: st.DataObject
) -> None:
    manifest = make_manifest(shards)
    held_back = data.draw(st.integers(0, manifest.total_samples // 2))
    try:
        order = SampleOrder(manifest, seed, batch, 8, 16, tail, held_back)  # type: ignore[arg-type]
    except OrderError:
        assert manifest.total_samples - held_back < batch
        return
    kept = set(order.samples.held_back.tolist())
    assert len(kept) == held_back
    for epoch in range(2):
        seen: set[int] = set()
        for index in range(order.batches_per_epoch()):
            whole = order.global_batch(epoch, index).tolist()
            for world in range(1, min(8, batch) + 1):
                parts = [order.take(epoch, index * batch, order.rank_slice(rank, world)) for rank in range(world)]
                assert np.concatenate(parts).tolist() == whole
            seen |= set(whole)
            assert not set(order.substitutes(epoch, index * batch, 0)) & kept, "nor does one stand in for a damaged sample"
        assert not seen & kept
        left_out = order.samples.total - len(seen)
        assert left_out == (0 if tail == "pad" else order.samples.total % batch)


def loader(folder: Path, held_back: float = 0.1, **more: object) -> StreamLoader:
    data = DataConfig(shards=str(folder), crop="random", threads=1, **more)  # type: ignore[arg-type]
    return StreamLoader(StreamConfig(data, image_size=64, global_batch=8, held_back=held_back))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("held_back")
    pictures = photographs(100)
    pictures[3] = pictures[3][:200]  # damaged
    write_dataset(found, pictures, [40, 35, 25])
    return found


def test_a_position_keeps_the_samples_that_its_run_holds_back(folder: Path) -> None:
    with loader(folder) as first:
        state = first.state_dict()
        held_back = first.datasets[0].held_back.tolist()
    assert len(held_back) == 10
    with loader(folder, held_back=0.3) as other:
        assert len(other.datasets[0].held_back) == 30
        other.load_state_dict(state)
        assert other.datasets[0].held_back.tolist() == held_back


def test_a_position_of_before_there_were_any_holds_none_back(folder: Path) -> None:
    with loader(folder, held_back=0.0) as old:
        expected = next(iter(old)).sample_ids.tolist()
        state = {key: value for key, value in old.state_dict().items() if key != "held_back"}
    state["consumed"] = 0
    with loader(folder) as new:
        new.load_state_dict(state)
        assert not len(new.datasets[0].held_back)
        assert next(iter(new)).sample_ids.tolist() == expected


def test_the_chosen_pictures_are_the_same_whoever_reads_which_of_them(folder: Path) -> None:
    with loader(folder, held_back=0.3) as one, loader(folder, held_back=0.3) as other:
        choice, again = held_back_choice(one, 12), held_back_choice(other, 12)
        whole, _ = choice.read(range(12))
        part, _ = again.read([7, 2])
    assert choice.count == 12
    assert part.images.tolist() == whole.images[[7, 2]].tolist()
    assert part.keys.tolist() == whole.keys[[7, 2]].tolist()
    assert part.labels.tolist() == whole.labels[[7, 2]].tolist()
    assert len({picture.sum().item() for picture in whole.images}) == 12, "they are different pictures"


def test_a_picture_that_can_not_be_read_is_black_and_named(folder: Path) -> None:
    with loader(folder, held_back=0.0) as own:
        choice = choice_of(own, own.datasets[0], 100)
        found, bad = choice.read(range(100))
    assert [error.sample_id for error in bad] == [3]
    assert found.readable.sum() == 99
    (place,) = (~found.readable).nonzero().flatten().tolist()
    assert not found.images[place].any()
    assert found.labels[place] == -1


def test_data_sets_of_a_mixture_each_hold_back_their_own(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "b", photographs(90), [90])
    data = DataConfig(
        sources={"a": SourceConfig(shards=str(folder)), "b": SourceConfig(shards=str(tmp_path / "b"))}, threads=1, max_bad_fraction=0.1
    )
    config = StreamConfig(data, image_size=64, global_batch=16, held_back=0.1)
    with StreamLoader(config) as mixed:
        state = mixed.state_dict()
        assert (state["a.held_back"], state["b.held_back"]) == (10, 9)
        held_back = {int(each) + dataset.first_id for dataset in mixed.datasets for each in dataset.held_back}
        trained = {int(each) for batch, _ in zip(mixed, range(12), strict=False) for each in batch.sample_ids}
        assert not held_back & trained
        choice = held_back_choice(mixed, 1000)
        assert choice.count == 19
        assert choice.read(range(19))[0].readable.sum() >= 18


def test_a_data_set_that_is_named_twice_holds_back_the_same_samples_under_both_names(folder: Path) -> None:
    """Otherwise the one name would train on what the other holds back."""
    sources = {"a": SourceConfig(shards=str(folder)), "b": SourceConfig(shards=str(folder), weight=2.0)}
    data = DataConfig(sources=sources, threads=1, max_bad_fraction=0.1)
    with StreamLoader(StreamConfig(data, image_size=64, global_batch=16, held_back=0.1)) as mixed:
        first, second = (dataset.held_back.tolist() for dataset in mixed.datasets)
        assert len(first) == 10
        assert first == second
