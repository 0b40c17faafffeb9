"""The predictions of `python launch/simulate.py`, against counts by hand and a replay of every sample."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.stream.order as order_module
from launch.simulate import main
from pipeline.simulation import Measurement, Setup, SimulationError, Subject, command, made_up, simulate, stored
from pipeline.simulation.blocks import NodeBlocks, node_parts
from pipeline.simulation.prediction import FIRST, IN_PLACE, LATER, NO_CACHE
from pipeline.simulation.quality import missed, quality
from pipeline.simulation.ranges import JoinedRanges
from pipeline.simulation.report import advice, as_mapping, as_text
from pipeline.simulation.workload import LANE_BLOCKS, NodeReplay, Traffic
from pipeline.stream.order import SampleOrder
from pipeline.stream.read import fetch
from shards.dataset import index
from shards.dataset.index import file_size
from shards.dataset.manifest import Manifest, ShardRecord
from shards.errors import ManifestMismatch, ShardError
from tests.datasets import photographs, write_dataset


def subject(counts: list[int], sample: int = 1_000_000) -> Subject:
    """A data set of shards with samples of so many bytes, 80 % of them the picture: by default too far apart to be joined."""
    records = tuple(ShardRecord(f"{number}.tar", count * sample, "", count, "") for number, count in enumerate(counts))
    return Subject(Manifest(records), "by hand", 0.8, "given")


def setup(**figures: float) -> Setup:
    known: dict[str, float] = {"ranks_per_node": 1, "global_batch": 10, "lanes": 1, "shuffle_block": 10, "epochs": 1, "cache_gb": 1}
    return Setup(**{**known, **figures})  # type: ignore[arg-type]


def test_one_shard_in_one_lane_is_what_a_person_counts() -> None:
    found = simulate(subject([40]), setup(images_per_second=10, latency=0, bandwidth=1, connections=1, preemption_minutes=1000))
    bare = found.paces[NO_CACHE]
    assert bare.traffic == Traffic(samples=40, ranged=40, ranges=40, ranged_bytes=40 * 800_000, indexes=1, index_bytes=file_size(40))
    assert (found.batches, found.lane_length, found.shards_touched) == (4, 40, 1)
    assert found.walk.working_sets == [40_000_000] * 4
    assert found.cache_needed == 40_000_000
    assert found.paces[FIRST].traffic.downloads == 1
    assert found.paces[FIRST].traffic.download_bytes == 40_000_000
    # 1 MB a second: a step takes (32 MB + index) / 4 seconds where the GPU needs one
    assert bare.step == pytest.approx((32e6 + file_size(40)) / 4e6)
    assert bare.stall == pytest.approx(1 - 1 / bare.step)
    assert bare.bound == "the node's bandwidth"
    assert found.quality.shards_per_batch == (1, 1, 1)
    assert found.quality.meeting == pytest.approx(4 * 45 / (40 * 39 / 2))
    assert found.quality.perfect_meeting == pytest.approx(9 / 39)
    assert found.quality.moved == pytest.approx(99 / 30)


@pytest.mark.parametrize(
    ("figures", "bound", "step"),
    [
        ({}, "the GPUs", 1.0),
        ({"decode_rate": 2}, "decoding", 5.0),
        ({"latency": 1000}, "the latency of requests", 12 * 1 / 2),
        ({"requests_per_second": 4}, "the store's limit of requests", 12 / 4),
        ({"store_bandwidth": 1}, "the store's bandwidth", None),
        ({"connection_bandwidth": 1}, "the latency of requests", None),
        # 8 shards of 5 MB and 8 seconds of latency over 4 steps, two at a time
        (
            {"cache_gb": 1, "latency": 1000, "connection_bandwidth": 1, "connections": 64},
            "two downloads at a time a rank",
            (8 + 40) / 4 / 2,
        ),
    ],
)
def test_each_limit_binds_where_it_is_the_lowest(figures: dict[str, float], bound: str, step: float | None) -> None:
    """Four batches of 10 from 8 shards: 40 ranges and 8 indexes, 12 requests a step."""
    known = {"images_per_second": 10, "latency": 10, "connections": 2, "cache_gb": 0, "shuffle_block": 40}
    found = simulate(subject([5] * 8), setup(**{**known, **figures}))
    pace = found.now
    assert pace.traffic.downloads + found.paces[NO_CACHE].traffic.requests == (56 if "cache_gb" in figures else 48)
    assert pace.bound == bound
    if step is not None:
        assert pace.step == pytest.approx(step)
    assert pace.stall == pytest.approx(1 - 1 / pace.step)
    (sentence,) = advice(found)
    expected = "nothing to change: the GPUs don't wait" if bound == "the GPUs" else f"% of the time for {bound}"
    assert expected in sentence


@pytest.mark.parametrize(
    ("figures", "ending"),
    [
        ({"cache_gb": 0}, "don't wait for data."),
        ({"cache_gb": 1, "bandwidth": 10, "epochs": 2}, "of the time while the cache fills"),
        ({"cache_gb": 1, "latency": 900, "connections": 2, "epochs": 2, "requests_per_second": 0}, "without the cache they would wait "),
        ({"cache_gb": 0, "bandwidth": 7.98}, "hardly wait for data (0."),
    ],
    ids=["nowhere", "in the first epoch", "without the cache", "a little"],
)
def test_the_advice_never_says_less_waiting_than_the_table(figures: dict[str, float], ending: str) -> None:
    known = {"images_per_second": 10, "latency": 1, "connections": 64, "shuffle_block": 40, "connection_bandwidth": 0}
    found = simulate(subject([5] * 8), setup(**{**known, **figures}))
    said = advice(found)[-1]
    waits = {name: f"{100 * pace.stall:.1f} %" for name, pace in found.paces.items()}
    print(waits, said)
    assert ending in said
    assert all(share in said for name, share in waits.items() if share != "0.0 %"), waits


def test_the_first_batch_is_what_a_person_counts() -> None:
    """From one shard of 40 MB: the manifest, an index and ten ranges of 0.8 MB that are far apart."""
    known = {"latency": 100, "bandwidth": 1, "connections": 4, "decode_rate": 20, "requests_per_second": 0}
    size = file_size(40)
    opened = 0.2 + 190 / 1e6  # is the manifest there, then its one row
    whole = opened + 0.2 + (40e6 + size) / 1e6 + 10 / 20
    first = simulate(subject([40]), setup(**known)).first_batch
    assert first.shards == 1
    # a turn for the index, three for ten ranges of which four are under way at a time
    assert first.ranged == pytest.approx(opened + 4 * 0.1 + (8e6 + size) / 1e6 + 10 / 20)
    assert first.whole_shards == pytest.approx(whole)
    limited = simulate(subject([40]), setup(**{**known, "requests_per_second": 2})).first_batch
    assert limited.ranged == pytest.approx(opened + 11 / 2 + (8e6 + size) / 1e6 + 10 / 20)
    slow = simulate(subject([40]), setup(**{**known, "bandwidth": 100, "connection_bandwidth": 1})).first_batch
    assert slow.ranged == pytest.approx(0.2 + 190 / 1e8 + 4 * 0.1 + (8e6 + size) / 4e6 + 10 / 20)
    assert slow.whole_shards == pytest.approx(0.2 + 190 / 1e8 + 0.2 + (40e6 + size) / 2e6 + 10 / 20)


@pytest.mark.parametrize(("samples", "size"), [(1, 1), (1, 512), (7, 513), (40, 1000), (29, 30_000)])
def test_made_up_shards_are_as_long_as_written_ones(samples: int, size: int) -> None:
    """Written ones come from webdataset's own writer, with the members that `python -m shards build` gives a sample."""
    tar = io.BytesIO()
    with webdataset.TarWriter(tar, encoder=False, mtime=0) as writer:
        for number in range(samples):
            writer.write({"__key__": f"{number:09d}", "jpg": bytes(size), "json": b'{"source": "a/b.jpg", "label": "a"}', "cls": b"7"})
    one = made_up(3 * samples, samples, size)
    assert [record.size for record in one.manifest.records] == [len(tar.getvalue())] * 3
    assert one.picture_fraction == pytest.approx(samples * size / len(tar.getvalue()))


@pytest.mark.parametrize("batch", [30, 160, 299])
def test_a_block_of_a_whole_lane_is_a_perfect_shuffle(batch: int) -> None:
    """With a batch of 160 nearly half of the 300 samples is left out of the epoch."""
    found = [quality(SampleOrder(subject([6] * 50).manifest, seed, batch, 1, 300)) for seed in range(40)]
    mean = np.mean([one.shards_per_batch[1] for one in found])
    assert found[0].exact
    assert mean == pytest.approx(found[0].perfect_shards_per_batch, rel=0.01)
    assert np.mean([one.meeting for one in found]) == pytest.approx(found[0].perfect_meeting, rel=0.05)
    assert found[0].moved == found[0].perfect_moved
    assert found[0].perfect_shards_per_batch == pytest.approx(50 * (1 - missed(300, 6, batch)))
    assert missed(5, 2, 2) == pytest.approx(3 / 10)
    assert missed(5, 2, 4) == 0


def test_shuffle_figures_equal_counts_over_a_whole_epoch() -> None:
    order = SampleOrder(subject([7, 30, 1, 0, 22, 40, 13, 28, 60]).manifest, 3, 12, 4, 15)
    found = quality(order)
    batches = [order.manifest.locate(order.global_batch(0, number))[0].tolist() for number in range(order.batches_per_epoch())]
    different = [len(set(batch)) for batch in batches]
    assert found.exact
    assert found.shards_per_batch == (min(different), pytest.approx(sum(different) / len(different)), max(different))
    met = sum(batch[first] == batch[second] for batch in batches for first in range(12) for second in range(first))
    pairs = sum(count * (count - 1) // 2 for count in order.manifest.sample_counts.tolist())
    assert found.meeting == pytest.approx(met / pairs)


def test_expected_shuffle_figures_equal_counted_ones_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [SampleOrder(subject([25] * 40).manifest, seed, 40, 4, 50) for seed in range(60)]
    counted = [quality(order) for order in orders]
    monkeypatch.setattr("pipeline.simulation.quality.PERMUTED", 1)
    expected = [quality(order) for order in orders]
    assert not any(one.batches for one in expected)
    for name in ("meeting", "shards_per_batch"):
        one, other = (np.mean([np.mean(getattr(found, name)) for found in group]) for group in (counted, expected))
        assert one == pytest.approx(other, rel=0.03)


def test_samples_move_as_far_as_is_said() -> None:
    order = SampleOrder(subject([500] * 8).manifest, 1, 10, 1, 1500)
    still = SampleOrder(order.manifest, 1, 10, 1, 1)
    place = {sample: at for at, sample in enumerate(np.concatenate([still.global_batch(0, number) for number in range(400)]).tolist())}
    found = np.concatenate([order.global_batch(0, number) for number in range(400)]).tolist()
    moved = np.mean([abs(at - place[sample]) for at, sample in enumerate(found)])
    assert quality(order).moved == pytest.approx(moved, rel=0.04)


shapes = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=25).filter(lambda counts: sum(counts) >= 48),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 5),
)


@given(shapes)
@settings(max_examples=25)
def test_the_blocks_are_those_of_the_order(shape: tuple[list[int], int, int, int, int, int]) -> None:
    counts, lanes, batches_a_block, nodes, ranks, seed = shape
    order = SampleOrder(subject(counts).manifest, seed, 12, lanes, batches_a_block * 12 // lanes)
    parts = node_parts(order, nodes, ranks)
    part = slice(parts[0].start, parts[-1].stop)
    blocks = NodeBlocks(order, part)
    for number, needs in enumerate(blocks.needs(0, 0, blocks.count)):
        consumed = number * order.shuffle_block * lanes
        assert [need.shard for need in needs] == list(order.shards_ahead(0, consumed, part, 1))
    trained = sum(need.samples for needs in blocks.needs(0, 0, blocks.count) for need in needs)
    assert trained == pytest.approx(order.batches_per_epoch() * (part.stop - part.start))
    touched = {need.shard for needs in blocks.needs(0, 0, blocks.count) for need in needs}
    held = [shard for shard in range(len(counts)) if counts[shard]]
    assert touched <= set(held)
    assert blocks.shards_touched(0) == len(touched)


def replayed(order: SampleOrder, ranks: list[slice], budget: int | None, epochs: int) -> list[tuple[int, int, int, float]]:
    """Downloads, their bytes, indexes and ranged samples of each epoch: every batch and sample of the order, and a plain list as cache."""
    part = slice(ranks[0].start, ranks[-1].stop)
    sizes = [record.size for record in order.manifest.records]
    held: list[int] = []  # oldest claim first
    claimed: set[int] = set()
    indexes: set[tuple[int, int]] = set()
    named = None
    found = []
    for epoch in range(epochs):
        downloads = volume = ranged = 0
        before = len(indexes)
        for number in range(order.batches_per_epoch()):
            consumed = number * order.global_batch_size
            block = (epoch, consumed // order.lanes // order.shuffle_block)
            if budget is not None and block != named:
                named = block
                needed = list(dict.fromkeys(order.shards_ahead(epoch, consumed, part, 2)))
                fresh = [shard for shard in needed if shard in held and shard not in claimed]
                held = [shard for shard in held if shard not in fresh] + fresh
                claimed = set(needed)
                for shard in needed:
                    if shard in held:
                        continue
                    for oldest in [one for one in held if one not in claimed]:
                        if sum(sizes[one] for one in held) + sizes[shard] > budget:
                            held.remove(oldest)
                    if sum(sizes[one] for one in held) + sizes[shard] <= budget:
                        held.append(shard)
                        downloads, volume = downloads + 1, volume + sizes[shard]
            for rank, places in enumerate(ranks):
                for shard in order.manifest.locate(order.take(epoch, consumed, places))[0].tolist():
                    ranged += shard not in held
                    indexes.add((rank, shard))
        found.append((downloads, volume, len(indexes) - before, ranged))
    return found


@given(shapes, st.sampled_from([None, 0, 15_000_000, 25_000_000, 40_000_000, 70_000_000, 10**10]))
@settings(max_examples=25)
def test_an_epoch_costs_what_a_replay_of_every_sample_costs(shape: tuple[list[int], int, int, int, int, int], budget: int | None) -> None:
    counts, lanes, batches_a_block, nodes, ranks_of_node, seed = shape
    one = subject(counts)
    order = SampleOrder(one.manifest, seed, 12, lanes, batches_a_block * 12 // lanes)
    ranks = node_parts(order, nodes, ranks_of_node)
    whole_lanes = all(rank.start % order.per_lane == 0 and rank.stop % order.per_lane == 0 for rank in ranks)
    walk = NodeReplay(one, order, ranks, budget).run(3)
    expected = replayed(order, ranks, budget, 3)
    assert walk.exact
    for traffic, (downloads, volume, _, ranged) in zip(walk.epochs, expected, strict=True):
        assert (traffic.downloads, traffic.download_bytes) == (downloads, volume)
        if whole_lanes:  # otherwise nodes share the samples of a lane, and a node's are a mean
            left_out = order.lanes * (order.lane_length - order.batches_per_epoch() * order.per_lane)  # which, the shuffle decides
            assert traffic.ranged == pytest.approx(ranged, abs=left_out + 1e-6)
            assert traffic.ranged_bytes == pytest.approx(800_000 * traffic.ranged)
            assert traffic.ranges == pytest.approx(traffic.ranged)
    if whole_lanes and order.lane_length % order.shuffle_block == 0:
        assert sum(traffic.indexes for traffic in walk.epochs) == sum(indexes for *_, indexes, _ in expected)


@pytest.mark.parametrize(("stride", "picture"), [(3_000, 2_000), (20_000, 18_000), (50_000, 40_000), (100_000, 30_000)])
def test_neighbours_are_joined_as_often_as_the_stream_joins_them(stride: int, picture: int) -> None:
    """Random draws of 30 of a block's 400 samples, of which a shard holds 150, against the runs that the fetcher makes of them."""
    rows = np.zeros(150, index.ROW)
    rows["offset"], rows["length"] = 512 + stride * np.arange(150), picture
    found = index.ShardIndex(rows, 512 + stride * 150)
    random = np.random.default_rng(1)
    requests = read = 0
    for _ in range(4000):
        places = random.permutation(400)[:30]
        wanted = [fetch.Wanted(int(row), Future()) for row in places[places < 150]]
        made = fetch.runs(found, wanted)
        requests, read = requests + len(made), read + sum(run.stop - run.start for run in made)
    saved, between = JoinedRanges(400, 30, stride, picture).joined(150)
    drawn = 4000 * 30 * 150 / 400
    assert drawn - 4000 * saved == pytest.approx(requests, rel=0.02)
    assert drawn * picture + 4000 * between == pytest.approx(read, rel=0.02)


@given(shapes)
@settings(max_examples=25)
def test_no_cache_reads_less_than_one_that_holds_everything(shape: tuple[list[int], int, int, int, int, int]) -> None:
    counts, lanes, batches_a_block, nodes, ranks, seed = shape
    one = subject(counts)
    order = SampleOrder(one.manifest, seed, 12, lanes, batches_a_block * 12 // lanes)
    parts = node_parts(order, nodes, ranks)
    need = max(NodeReplay(one, order, parts, 10**12).run(3).working_sets)
    walks = [NodeReplay(one, order, parts, int(need * factor)).run(3) for factor in (1, 1.2, 1.5, 2, 4, 100)]
    totals = [sum(traffic.bytes for traffic in walk.epochs) for walk in walks]
    # between two that do not hold everything, the larger one may read more, because it evicts at other moments
    assert totals[-1] == min(totals)
    assert all(traffic.ranged == 0 for walk in walks for traffic in walk.epochs)


def test_better_figures_never_make_the_gpus_wait_longer() -> None:
    one = subject([50] * 40, 100_000)
    known = {"global_batch": 16, "lanes": 4, "shuffle_block": 40, "cache_gb": 0, "latency": 200, "bandwidth": 2, "requests_per_second": 50}

    def stall(**figures: float) -> float:
        return simulate(one, setup(**{**known, **figures})).now.stall

    for name, better in {"latency": [200, 50, 0], "bandwidth": [2, 20, 200], "requests_per_second": [50, 500, 0]}.items():
        stalls = [stall(**{name: value}) for value in better]
        assert stalls == sorted(stalls, reverse=True)
    waits = [stall(images_per_second=rate) for rate in (1, 10, 100, 1000)]
    assert waits == sorted(waits)


def test_a_cache_that_is_too_small_is_named_with_what_is_enough() -> None:
    one = subject([100] * 60, 1_000_000)
    small = simulate(one, setup(global_batch=16, lanes=16, shuffle_block=50, cache_gb=1, epochs=2))
    assert small.cache_needed > 1e9
    assert 0 < small.now.traffic.ranged < small.now.traffic.samples
    assert "NOT enough" in as_text(small)
    (enough,) = {float(word) for sentence in advice(small) for word in sentence.replace(",", " ").split() if word.isdigit()}
    large = simulate(one, setup(global_batch=16, lanes=16, shuffle_block=50, cache_gb=enough, epochs=2))
    assert large.paces[LATER].traffic.ranged == 0
    assert large.now.traffic.requests < small.now.traffic.requests


def test_what_kills_cost() -> None:
    known = {"images_per_second": 10, "latency": 0, "requests_per_second": 0, "cache_gb": 0, "restart_seconds": 60, "checkpoint_steps": 100}
    found = simulate(subject([5] * 8), setup(preemption_minutes=60, **known))
    cost = found.preemption
    assert cost is not None
    assert cost.lost_steps == 50
    assert cost.seconds == pytest.approx(50 + 60, abs=0.1)
    assert cost.throughput == pytest.approx(110 / 3600, rel=1e-3)
    assert cost.bytes == pytest.approx(50 * found.now.traffic.bytes / 4)
    stuck = simulate(subject([5] * 8), setup(preemption_minutes=2, **known))  # 60 s of work, a checkpoint after 100
    assert stuck.preemption is not None
    assert stuck.preemption.throughput == 1
    assert "checkpoint-steps" in advice(stuck)[0]
    cached = simulate(subject([5] * 8), setup(preemption_minutes=60, **{**known, "cache_gb": 1}))
    assert cached.preemption is not None
    assert cached.preemption.bytes > 50 * cached.now.traffic.bytes / 4 + min(cached.walk.working_sets)


@pytest.mark.parametrize(
    "figures",
    [{}, {"lanes": 1, "shuffle_block": 10**9}, {"nodes": 64, "global_batch": 65536, "lanes": 4096}],
    ids=["", "one block", "wide"],
)
@pytest.mark.slow
def test_a_billion_samples_take_little_work(monkeypatch: pytest.MonkeyPatch, figures: dict[str, int]) -> None:
    permuted = 0
    real = order_module.permutation

    def counted(count: int, *key: int) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal permuted
        permuted += count
        return real(count, *key)

    monkeypatch.setattr(order_module, "permutation", counted)
    one = made_up(1e9, 10_000, 30_000)
    found = simulate(one, Setup(**{"epochs": 90, "cache_gb": 60.0, **figures}))  # type: ignore[arg-type]
    assert len(one.manifest.records) == 100_000
    assert found.walk.lane_blocks <= LANE_BLOCKS
    assert permuted < 3e7
    first = found.paces[FIRST].traffic
    node = found.node_samples * found.batches
    assert first.samples == pytest.approx(node)
    assert found.paces[NO_CACHE].traffic.ranged_bytes == pytest.approx(30_000 * node, rel=0.01)
    assert len(as_text(found).splitlines()) > 20
    assert json.loads(json.dumps(as_mapping(found)))["epochs"][NO_CACHE]["ranged"] == pytest.approx(node)


def test_windows_of_an_epoch_stand_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one = made_up(200_000, 100, 1000)
    order = SampleOrder(one.manifest, 0, 32, 8, 64)
    ranks = node_parts(order, 1, 1)
    for budget in (None, 3_000_000, 10_000_000):
        whole = NodeReplay(one, order, ranks, budget).run(1)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.simulation.workload.LANE_BLOCKS", 2000)
            sampled = NodeReplay(one, order, ranks, budget).run(5)
        assert whole.exact
        assert not sampled.exact
        assert len(sampled.epochs) == 1
        assert sampled.lane_blocks <= 2000
        assert sampled.epochs[0].bytes == pytest.approx(whole.epochs[0].bytes, rel=0.03)
        assert sampled.epochs[0].requests == pytest.approx(whole.epochs[0].requests, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the URL of a data set, or --samples and --shard-samples and --sample-bytes"),
        (["--samples", "100"], "--shard-samples and --sample-bytes as well"),
        (["somewhere", "--samples", "100"], "somewhere says what the data set is: leave out --samples"),
        (["--measure", "--samples", "1e4", "--shard-samples", "10", "--sample-bytes", "10"], "--measure reads a bucket"),
        (["--samples", "1e4", "--shard-samples", "0", "--sample-bytes", "10"], "--shard-samples 0: give a whole number from 1 up"),
        (["--samples", "1.5", "--shard-samples", "1", "--sample-bytes", "10"], "--samples 1.5: give a whole number"),
        (["--samples", "nan", "--shard-samples", "1", "--sample-bytes", "10"], "--samples nan: give a whole number"),
        (["--samples", "1e12", "--shard-samples", "10", "--sample-bytes", "10"], "raise --shard-samples"),
        (["--samples", "100", "--shard-samples", "10", "--sample-bytes", "10"], "less than one --global-batch of 2,048"),
        (["--samples", "1e4", "--nodes", "0"], "--nodes 0: give 1 or more"),
        (["--bandwidth", "0"], "--bandwidth 0: give a number above 0"),
        (["--latency", "-1"], "--latency -1: give 0 or more"),
        (["--cache-gb", "inf"], "--cache-gb inf: give 4,000,000,000 or less"),
        (["--cache-gb", "1e300"], r"--cache-gb 1e\+300: give 4,000,000,000 or less"),
        (["--latency", "nan"], "--latency nan: give 9,007,199,254,740,991 or less"),
        (["--store-bandwidth", "5e-324"], "--store-bandwidth .*: give 0, or 1e-09 or more"),
        (["--global-batch", "1.5"], "--global-batch 1.5: give a whole number"),
        (["--global-batch", "1e300"], "--global-batch of more than 19 digits: give 8,000,000 or less"),
        (["--nodes", "9" * 400], "--nodes of more than 19 digits: give 100,000 or less"),
        (["--connections", "9" * 330], "--connections of more than 19 digits: give 9,007,199,254,740,991 or less"),
        (["--epochs", "9" * 5000], "--epochs inf: give 9,007,199,254,740,991 or less"),
        (["--seed", str(2**63)], "--seed 9223372036854775808: give 9,223,372,036,854,775,807 or less"),
        (["--seed=-1"], "--seed -1: give 0 or more"),
        (
            ["--samples", "1e4", "--shard-samples", "10", "--sample-bytes", "1e18"],
            "--sample-bytes 1000000000000000000: give a whole number",
        ),
        (
            ["--samples", "9" * 400, "--shard-samples", "10", "--sample-bytes", "10"],
            "--samples of more than 19 digits: give a whole number",
        ),
        (["--samples", "1e15", "--shard-samples", "1e12", "--sample-bytes", "3e4", "--global-batch", "16"], r"are 2\^62 bytes or more"),
        (["--samples", "1e18", "--shard-samples", "1e12", "--sample-bytes", "3e4", "--global-batch", "16"], "--samples 10+: give a whole"),
        (["--nodes", "2", "--global-batch", "8"], "16 ranks .* raise it to 16 or more"),
        (["x", "--storage", "endpoint"], "KEY=VALUE"),
    ],
)
def test_figures_that_can_not_be_are_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


def test_the_largest_figures_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """A figure at its limit may make no sense; it must not end in an error that nobody wrote, nor take a permutation of all."""
    sizes = ["--samples", "1e14", "--shard-samples", "1e12", "--sample-bytes", "30000"]
    batch = ["--global-batch", "1e6", "--ranks-per-node", "8", "--seed", str(2**63 - 1), "--connections", str(2**53 - 1)]
    times = ["--store-bandwidth", "1e-9", "--epochs", str(2**53 - 1), "--cache-gb", "4e9", "--checkpoint-steps", "9e15"]
    assert main([*sizes, *batch, *times, "--preemption-minutes", "9e15", "--json"]) == 0
    table = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert table["setup"]["global_batch"] == 1_000_000
    assert table["setup"]["seed"] == 2**63 - 1
    with pytest.raises(SimulationError, match="2\\^62 or more"):
        simulate(subject([2**45] * 2, 2**17), setup())


def test_whole_numbers_are_read_in_any_notation(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--samples", "1e4", "--shard-samples", "1e2", "--sample-bytes", "3e4"]
    assert main([*sizes, "--global-batch", "1e3", "--nodes", "2.0", "--seed", "9007199254740993", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["setup"]
    assert (told["global_batch"], told["nodes"], told["seed"]) == (1000, 2, 2**53 + 1)
    assert isinstance(told["global_batch"], int)
    with pytest.raises(SystemExit):
        main([*sizes, "--nodes", "two"])
    assert "argument --nodes: 'two' is no number" in capsys.readouterr().err


def test_shards_of_a_local_folder_are_said_to_be_read_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "set", photographs(24, 60, 60), [8, 8, 8])
    known = [str(tmp_path / "set"), "--global-batch", "8", "--ranks-per-node", "1", "--latency", "5000", "--cache-gb", "1e-6"]
    assert main(known) == 0
    text = capsys.readouterr().out
    assert "read in place: no downloads, no cache, no limits of a store" in text
    assert "--samples 24 --shard-samples 8 --sample-bytes " in text
    assert "the GPUs don't wait" in text
    assert "by ranges" not in text.replace("samples read by ranges", "")
    assert main([*known, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["data_set"]["read_in_place"] is True
    assert list(table["epochs"]) == [IN_PLACE]
    assert (table["epochs"][IN_PLACE]["samples"], table["epochs"][IN_PLACE]["requests"], table["epochs"][IN_PLACE]["stall"]) == (24, 0, 0)
    assert (table["cache_needed"], table["cache_enough"], table["first_batch"]["ranged"]) == (0, True, 0)
    assert main([*known, "--measure"]) == 1
    assert "--measure reads a bucket: " in capsys.readouterr().err


def test_figures_that_are_given_are_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The store is replaced by what it gave; test_simulation_real.py asks a real one."""
    monkeypatch.setattr(command, "stored", lambda *_: subject([40]))
    monkeypatch.setattr(command, "measure", lambda *_: Measurement(5.0, 9.0, 40, 200.0, 50.0, 4, 1000, 0))
    known = ["s3://bucket/set", "--measure", "--global-batch", "8", "--latency", "30"]  # 30 is the default as well
    assert main([*known, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["setup"]["latency"], table["setup"]["bandwidth"], table["setup"]["connection_bandwidth"]) == (30, 200, 50)
    assert table["given_not_measured"] == ["latency"]
    assert main([*known, "--bandwidth", "7"]) == 0
    text = capsys.readouterr().out
    assert "given, so not taken from the measurement: --latency, --bandwidth" in text
    assert "7 MB/s a node, 50 MB/s a request, 30 ms a request" in text
    assert main([*known[:-2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["given_not_measured"] == []


def test_a_place_without_a_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="no shards"):
        stored(str(tmp_path))
    with pytest.raises(SimulationError, match="--ranks-per-node 0"):
        Setup(ranks_per_node=0)
    assert issubclass(SimulationError, ShardError)


def test_the_command_answers_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    known = [
        "--samples",
        "1e6",
        "--shard-samples",
        "1000",
        "--sample-bytes",
        "30000",
        "--nodes",
        "2",
        "--preemption-minutes",
        "60",
    ]
    assert main(known) == 0
    text = capsys.readouterr().out
    for word in (
        "working set",
        "cache needed",
        "first batch",
        "GPUs wait",
        "two samples of a shard",
        "a kill every 60 min",
        "advice:",
        "exact:",
        "not modelled: data.tail: pad",
        "evaluation.held_back (held-back samples",
        "data.sources",
    ):
        assert word in text
    assert main([*known, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["setup"]["nodes"] == 2
    assert set(table["epochs"]) == {FIRST, LATER, NO_CACHE}
    assert f"{round(table['epochs'][NO_CACHE]['requests']):,}" in text
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--store-bandwidth MB/s" in capsys.readouterr().out
