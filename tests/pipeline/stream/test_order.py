"""The order of samples is a pure function of data set, seed, epoch and batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream import order as order_module
from pipeline.stream.order import OrderError, SampleOrder, rank_slice
from shards.dataset.manifest import Manifest, ShardRecord
from shards.keyed import permutation


def make_manifest(counts: list[int]) -> Manifest:
    return Manifest(
        tuple(ShardRecord(f"shard-{number:06d}.tar", count * 100, f"{number:064x}", count, "") for number, count in enumerate(counts))
    )


manifests = st.lists(st.integers(0, 300), min_size=1, max_size=30).filter(lambda counts: sum(counts) >= 1).map(make_manifest)


@st.composite
def orders(draw: st.DrawFn, tail: str = "drop") -> SampleOrder:
    manifest = draw(manifests)
    batch = draw(st.integers(1, min(manifest.total_samples, 96)))
    return SampleOrder(
        manifest,
        draw(st.integers(0, 2**40)),
        batch,
        draw(st.sampled_from([1, 2, 3, 8, 64])),
        draw(st.integers(1, 200)),
        tail,  # type: ignore[arg-type]
    )


def epoch_ids(order: SampleOrder, epoch: int) -> np.ndarray:
    return np.concatenate([order.global_batch(epoch, index) for index in range(order.batches_per_epoch())])


@settings(max_examples=150, deadline=None)
@given(orders(), st.integers(0, 3))
def test_an_epoch_delivers_each_sample_once_and_leaves_out_less_than_a_batch(order: SampleOrder, epoch: int) -> None:
    ids = epoch_ids(order, epoch)
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() >= 0
    assert ids.max() < order.manifest.total_samples
    assert order.manifest.total_samples - len(ids) == order.manifest.total_samples % order.global_batch_size


@settings(max_examples=80, deadline=None)
@given(orders(tail="pad"))
def test_a_padded_epoch_delivers_every_sample(order: SampleOrder) -> None:
    ids = epoch_ids(order, 0)
    assert set(ids.tolist()) == set(range(order.manifest.total_samples))
    assert len(ids) < order.manifest.total_samples + order.global_batch_size + order.lanes * order.per_lane


@settings(max_examples=80, deadline=None)
@given(orders(), st.integers(1, 12))
def test_shares_of_any_number_of_ranks_make_up_the_global_batch(order: SampleOrder, world: int) -> None:
    world = min(world, order.global_batch_size)
    index = order.batches_per_epoch() - 1
    consumed = index * order.global_batch_size
    parts = [order.take(0, consumed, order.rank_slice(rank, world)) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), order.global_batch(0, index))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 8))
def test_shares_differ_by_at_most_one_unit(units: int, world: int, unit: int) -> None:
    if world > units:
        with pytest.raises(OrderError, match="start at most"):
            rank_slice(units * unit, 0, world, unit)
        return
    shares = [rank_slice(units * unit, rank, world, unit) for rank in range(world)]
    sizes = [part.stop - part.start for part in shares]
    assert sum(sizes) == units * unit
    assert all(size % unit == 0 for size in sizes)
    assert max(sizes) - min(sizes) <= unit
    assert all(left.stop == right.start for left, right in itertools.pairwise(shares))


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_the_batch_may_change_in_mid_epoch_to_any_multiple_of_the_lanes(order: SampleOrder, data: st.DataObject) -> None:
    change = data.draw(st.integers(0, order.batches_per_epoch()))
    other = SampleOrder(
        order.manifest, order.seed, order.lanes * data.draw(st.integers(1, max(1, order.lane_length))), order.lanes, order.shuffle_block
    )
    ids = [order.global_batch(0, index) for index in range(change)]
    consumed = change * order.global_batch_size
    while other.has_batch(consumed):
        ids.append(other.take(0, consumed, slice(0, other.global_batch_size)))
        consumed += other.global_batch_size
    delivered = np.concatenate([np.empty(0, np.int64), *ids])
    assert len(np.unique(delivered)) == len(delivered)
    per_lane_left = order.lane_length - consumed // order.lanes
    assert per_lane_left < other.per_lane


def test_a_fresh_order_gives_the_same_batch_at_any_position() -> None:
    manifest = make_manifest([1, 5000, 3, 700, 64])
    walked = SampleOrder(manifest, 7, 96, 64, 128)
    for index in range(walked.batches_per_epoch()):
        fresh = SampleOrder(manifest, 7, 96, 64, 128)
        np.testing.assert_array_equal(walked.global_batch(2, index), fresh.global_batch(2, index))


def test_seed_and_epoch_give_other_orders() -> None:
    manifest = make_manifest([200] * 5)
    batches = {tuple(SampleOrder(manifest, seed, 64).global_batch(epoch, 0)) for seed in range(4) for epoch in range(4)}
    assert len(batches) == 16


def test_the_order_is_pinned() -> None:
    """A change of these numbers would silently give every running experiment another order."""
    order = SampleOrder(make_manifest([10, 20, 30, 40]), 1, 8, 64, 16)
    assert order.global_batch(0, 0).tolist() == [62, 75, 87, 33, 48, 1, 2, 24]
    assert order.global_batch(3, 11).tolist() == [63, 81, 94, 97, 28, 8, 43, 54]


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_substitutes_come_from_the_block_then_the_lane_then_the_other_lanes(order: SampleOrder, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, order.batches_per_epoch() - 1))
    place = data.draw(st.integers(0, order.global_batch_size - 1))
    bad = order.global_batch(0, index)[place]
    found = list(order.substitutes(0, index * order.global_batch_size, place))
    own_lane = found[: order.lane_length - 1]
    assert bad not in own_lane
    assert len(set(own_lane)) == len(own_lane)
    assert len(found) == order.lanes * order.lane_length - 1
    assert {int(bad), *found} >= {sample for other in range(order.batches_per_epoch()) for sample in order.global_batch(0, other).tolist()}
    position = index * order.per_lane + place % order.per_lane
    block = position // order.shuffle_block
    neighbours = [  # every sample of the bad one's own block, from the batches themselves
        sample
        for other in range(order.batches_per_epoch())
        for slot, sample in enumerate(order.global_batch(0, other).tolist())
        if slot // order.per_lane == place // order.per_lane
        and (other * order.per_lane + slot % order.per_lane) // order.shuffle_block == block
    ]
    assert set(neighbours) - {int(bad)} <= set(found[: order.shuffle_block - 1])


@settings(max_examples=40, deadline=None)
@given(orders(tail="pad"), st.data())
def test_few_blocks_are_kept(order: SampleOrder, data: st.DataObject) -> None:
    edge = st.integers(0, order.global_batch_size)
    for _ in range(30):
        epoch, index = data.draw(st.integers(0, 2)), data.draw(st.integers(0, order.batches_per_epoch() - 1))
        start, stop = sorted([data.draw(edge), data.draw(edge)])
        assert len(order.take(epoch, index * order.global_batch_size, slice(start, stop))) == stop - start
        fresh = SampleOrder(order.manifest, order.seed, order.global_batch_size, order.lanes, order.shuffle_block, order.tail)
        wanted = epoch, index * order.global_batch_size, data.draw(st.integers(0, order.global_batch_size - 1))
        found, expected = (list(itertools.islice(one.substitutes(*wanted), 2 * order.shuffle_block)) for one in (order, fresh))
        assert found == expected
        assert sum(map(len, order._blocks.values())) <= 3 * order.lanes + 2
        assert all(len(block) for block in order._blocks.values())


def test_substitutes_come_from_blocks_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad samples in every lane cost no permutation where they and the batches lie in the same blocks, and of others one each."""
    order = SampleOrder(make_manifest([500] * 8), 3, 64, 16, 50)  # lanes of 250, five blocks each
    permuted: list[int] = []
    monkeypatch.setattr(order_module, "permutation", lambda count, *key: (permuted.append(count), permutation(count, *key))[1])
    for index in range(24):  # the first two blocks
        order.take(0, index * 64, slice(0, 64))
        for place in range(0, 64, 3):
            next(order.substitutes(0, index * 64, place))
    assert permuted.count(50) == 2 * 16
    for place in range(0, 64, 4):  # of each lane the three blocks that follow
        list(itertools.islice(order.substitutes(0, 23 * 64, place), 160))
        looked_for = len(permuted)
        order.take(0, 23 * 64, slice(0, 64))
        assert len(permuted) == looked_for, "what batches come from was given up for it"
    assert permuted.count(50) == 5 * 16


@settings(max_examples=60, deadline=None)
@given(orders(), st.data())
def test_the_shards_ahead_hold_the_samples_of_the_block(order: SampleOrder, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, order.batches_per_epoch() - 1))
    world = data.draw(st.integers(1, min(5, order.global_batch_size)))
    part = order.rank_slice(data.draw(st.integers(0, world - 1)), world)
    consumed = index * order.global_batch_size
    ahead = set(order.shards_ahead(0, consumed, part, blocks=2))
    positions = consumed // order.lanes + np.arange(part.start, part.stop) % order.per_lane
    soon = positions // order.shuffle_block <= consumed // order.lanes // order.shuffle_block + 1  # a batch may take more blocks of a lane
    shards, _ = order.manifest.locate(order.take(0, consumed, part)[soon])
    assert set(shards.tolist()) <= ahead


def test_too_small_a_data_set_and_wrong_positions_are_refused() -> None:
    with pytest.raises(OrderError, match="less than one global batch"):
        SampleOrder(make_manifest([10]), 0, 11)
    order = SampleOrder(make_manifest([100]), 0, 10)
    with pytest.raises(OrderError, match="no batch"):
        order.global_batch(0, 10)
    with pytest.raises(OrderError, match="no batch"):
        order.take(0, 3, slice(0, 1))
    with pytest.raises(OrderError, match="multiple of the batch-norm group"):
        order.rank_slice(0, 1, unit=3)
