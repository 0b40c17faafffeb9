"""Batches don't depend on ranks, threads, caches or interruptions, and nothing is lost or repeated."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.stream.batch.batch import Pending
from pipeline.stream.batch.filling import Filler
from pipeline.stream.batch.quarantine import QuarantineFull
from pipeline.stream.dataset import Dataset
from pipeline.stream.loader import Batch, LoaderClosed, StreamConfig, StreamLoader
from pipeline.stream.mixture import Position
from pipeline.stream.order import OrderError
from pipeline.stream.plan import PlannedSamples
from pipeline.stream.read.samples import BadSample
from shards.__main__ import main
from shards.dataset.manifest import load
from shards.errors import ManifestMismatch, ShardCorrupt
from shards.keyed import uniforms
from tests.datasets import photographs, write_dataset


@dataclass(frozen=True)
class Speckle:
    """A mask of independent pixels, enough to see that it follows the key."""

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        out[:] = (uniforms(key, 99, out.size) < 0.3).reshape(out.shape)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data set")
    write_dataset(folder, photographs(101), [1, 40, 3, 37, 20])
    return folder


def stream_config(folder: Path | str, **data: object) -> StreamConfig:
    settings: dict[str, object] = {"shards": str(folder), "shuffle_block": 16, "threads": 2, **data}
    return StreamConfig(DataConfig(**settings), image_size=64, global_batch=24, seed=5, mask=Speckle())  # type: ignore[arg-type]


def take(loader: StreamLoader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def joined(parts: list[Batch]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "masks", "labels", "sample_ids", "keys"))


@pytest.fixture(scope="module")
def reference(dataset: Path) -> list[Batch]:
    with StreamLoader(stream_config(dataset, threads=1)) as loader:
        return take(loader, 9)


def assert_same(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("crop", ["random", "random_resized", "center"])
def test_shapes_and_types_of_a_batch(dataset: Path, crop: str) -> None:
    with StreamLoader(stream_config(dataset, crop=crop)) as loader:
        batch = next(iter(loader))
    assert (batch.images.shape, batch.images.dtype) == ((24, 64, 64, 3), torch.uint8)
    assert (batch.masks.shape, batch.masks.dtype) == ((24, 64, 64), torch.bool)
    assert 0.2 < float(batch.masks.float().mean()) < 0.4
    assert batch.labels is not None
    assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
    assert batch.images.float().std() > 10


def test_labels_belong_to_their_samples(reference: list[Batch]) -> None:
    for batch in reference:
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.sample_ids % 7)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6, 7, 8])
def test_same_global_batches_for_any_world_size(dataset: Path, reference: list[Batch], world: int) -> None:
    loaders = [StreamLoader(stream_config(dataset), rank, world) for rank in range(world)]
    parts = [take(loader, len(reference)) for loader in loaders]
    for number, expected in enumerate(reference):
        assert_same(joined([part[number] for part in parts]), joined([expected]))
    assert len({tuple(loader.state_dict().items()) for loader in loaders}) == 1
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("threads", [2, 4])
def test_same_batches_for_any_number_of_threads(dataset: Path, reference: list[Batch], threads: int) -> None:
    with StreamLoader(stream_config(dataset, threads=threads)) as loader:
        for batch, expected in zip(loader, reference, strict=False):
            assert_same(joined([batch]), joined([expected]))
            if batch.epoch == reference[-1].epoch and batch.index == reference[-1].index:
                break


def test_a_world_that_changes_at_every_step_delivers_each_sample_once(dataset: Path, reference: list[Batch]) -> None:
    state: dict[str, int] | None = None
    seen: list[int] = []
    for number, expected in enumerate(reference):
        world = 1 + (number * 5) % 7
        parts = []
        for rank in range(world):
            with StreamLoader(stream_config(dataset), rank, world) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                parts.append(next(iter(loader)))
                last = loader.state_dict()
        state = json.loads(json.dumps(last))
        assert_same(joined(parts), joined([expected]))
        seen += [int(sample) for part in parts for sample in part.sample_ids if part.epoch == 0]
    assert len(seen) == len(set(seen)) == 96


def test_the_state_counts_what_was_handed_out_not_what_was_prepared(dataset: Path, reference: list[Batch]) -> None:
    with StreamLoader(stream_config(dataset, ready_batches=5)) as loader:
        take(loader, 3)
        state = loader.state_dict()
    assert (state["epoch"], state["consumed"]) == (0, 72)
    with StreamLoader(stream_config(dataset)) as loader:
        loader.load_state_dict(state)
        assert_same(joined(take(loader, 1)), joined(reference[3:4]))


def test_batches_are_planned_beside_the_training_and_a_failure_is_its_own_batchs(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StreamLoader(stream_config(dataset, threads=4, ready_batches=3)) as loader:
        order, training = loader.datasets[0].order, threading.current_thread()
        right = order.take

        def failing_at_the_third(epoch: int, consumed: int, part: slice) -> NDArray[np.int64]:
            assert threading.current_thread() is not training
            if consumed == 48:
                raise OrderError("the third")
            return right(epoch, consumed, part)

        monkeypatch.setattr(order, "take", failing_at_the_third)
        batches = iter(loader)
        assert [next(batches).index, next(batches).index] == [0, 1]
        with pytest.raises(OrderError, match="the third"):
            next(batches)


def test_closing_ends_a_wait_for_a_batch(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = StreamLoader(stream_config(dataset, threads=1, ready_batches=2))
    planning, going, problems = threading.Event(), threading.Event(), list[BaseException]()

    def never_until_closed(*_: object) -> None:
        planning.set()
        assert going.wait(20)

    monkeypatch.setattr(Filler, "fill", never_until_closed)

    def train() -> None:
        try:
            list(loader)
        except LoaderClosed as error:
            problems.append(error)

    training = threading.Thread(target=train)
    training.start()
    assert planning.wait(20)
    threading.Timer(0.3, going.set).start()
    loader.close()
    training.join(20)
    assert [str(problem) for problem in problems] == [str(LoaderClosed())]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loader_closed_between_two_batches_says_so(dataset: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    loader = StreamLoader(stream_config(dataset, threads=threads, ready_batches=2))
    batches = iter(loader)
    next(batches)
    begin = StreamLoader._begin

    def closed_by_another_thread(self: StreamLoader, positions: tuple[Position, ...]) -> Pending:
        self.close()
        return begin(self, positions)

    monkeypatch.setattr(StreamLoader, "_begin", closed_by_another_thread)
    with pytest.raises(LoaderClosed):
        next(batches)


def test_what_nobody_wants_any_more_is_neither_planned_nor_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, filled = list[int](), list[int]()
    going, halfway = threading.Event(), threading.Event()
    fill = Filler.fill
    monkeypatch.setattr(Filler, "fill", lambda self, filling, *rest: (filled.append(filling.plan.number), fill(self, filling, *rest)))
    with StreamLoader(stream_config(dataset, threads=1, ready_batches=4)) as loader:
        order = loader.datasets[0].order
        right = order.take

        def slowly(epoch: int, consumed: int, part: slice) -> NDArray[np.int64]:
            planned.append(consumed)
            halfway.set()
            assert going.wait(20)
            return right(epoch, consumed, part)

        monkeypatch.setattr(order, "take", slowly)

        def interrupted() -> None:
            assert halfway.wait(20)
            raise InterruptedError

        monkeypatch.setattr(loader, "waiting", interrupted)
        with pytest.raises(InterruptedError):  # while the first batch is planned and the others wait for their turn
            next(iter(loader))
        going.set()
    assert planned == [0]
    assert filled == []


def test_a_closed_loader_says_so(dataset: Path) -> None:
    loader = StreamLoader(stream_config(dataset))
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(LoaderClosed, match="make another"):
        next(batches)
    with pytest.raises(LoaderClosed):
        next(iter(loader))


@pytest.mark.timeout(60)  # what is tested for is a deadlock
def test_iterations_that_the_garbage_collector_ends_hold_nobody_up(dataset: Path, reference: list[Batch]) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(20, 1, 1)
        with StreamLoader(stream_config(dataset, threads=3, ready_batches=3)) as loader:
            for _ in range(60):
                batches = iter(loader)
                assert torch.equal(next(batches).sample_ids, reference[0].sample_ids)
                cycle: list[object] = [batches]
                cycle.append(cycle)
                del batches, cycle
                loader.load_state_dict({**loader.state_dict(), "consumed": 0})
    finally:
        gc.set_threshold(*before)


def test_an_iteration_that_ends_before_its_batches_are_planned_leaves_the_next_alone(dataset: Path, reference: list[Batch]) -> None:
    with StreamLoader(stream_config(dataset, threads=1, ready_batches=3)) as loader:
        for _ in range(5):
            first = next(iter(loader))
            assert torch.equal(first.sample_ids, reference[0].sample_ids)
            loader.load_state_dict({**loader.state_dict(), "consumed": 24})
            second = next(iter(loader))
            assert torch.equal(second.images, reference[1].images)
            loader.load_state_dict({**loader.state_dict(), "consumed": 0})


def test_a_batch_that_is_kept_is_never_written_over(dataset: Path) -> None:
    with StreamLoader(stream_config(dataset)) as loader:
        iterator = iter(loader)
        kept = next(iterator)
        copy = kept.images.clone()
        for _ in range(8):
            next(iterator)
        assert torch.equal(kept.images, copy)


def test_memory_of_dropped_batches_is_used_again(dataset: Path) -> None:
    with StreamLoader(stream_config(dataset)) as loader:
        addresses = {batch.images.data_ptr() for batch in itertools.islice(loader, 12)}
    assert len(addresses) <= 6


def test_the_epochs_end(dataset: Path) -> None:
    with StreamLoader(replace(stream_config(dataset), epochs=2)) as loader:
        batches = list(loader)
    assert [(batch.epoch, batch.index) for batch in batches] == [(epoch, index) for epoch in range(2) for index in range(4)]


def test_crops_change_between_epochs_and_seeds(dataset: Path, reference: list[Batch]) -> None:
    by_sample: dict[int, list[torch.Tensor]] = {}
    for batch in reference:
        for sample, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
            by_sample.setdefault(sample, []).append(image)
    pairs = [images for images in by_sample.values() if len(images) > 1]
    assert len(pairs) > 50
    assert sum(torch.equal(images[0], images[1]) for images in pairs) < 3


def flip_byte(folder: Path, shard: int, row: int) -> int:
    """Flips one bit in the middle of a picture; returns the sample's id."""
    manifest = load(str(folder))
    from shards.store import Store

    entry = manifest.read_index(Store(str(folder)), shard).rows[row]
    with open(folder / manifest.records[shard].name, "r+b") as file:
        file.seek(int(entry["offset"]) + int(entry["length"]) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return int(manifest.starts[shard]) + row


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, set[int]]:
    folder = tmp_path / "damaged"
    pictures = photographs(101)
    pictures[60] = pictures[60][: len(pictures[60]) // 2]  # stored truncated: its digest is right, it does not decode
    pictures[61] = b"not a picture"
    write_dataset(folder, pictures, [1, 40, 3, 37, 20])
    return folder, {60, 61, flip_byte(folder, 1, 5), flip_byte(folder, 4, 0)}


def test_bad_samples_are_replaced_alike_for_every_world_and_named_once(damaged: tuple[Path, set[int]], tmp_path: Path) -> None:
    folder, bad = damaged
    config = replace(stream_config(folder, max_bad_fraction=0.1), quarantine=tmp_path / "quarantine.jsonl")
    with StreamLoader(config) as loader:
        expected = take(loader, 8)
        totals = loader.counters.totals()
    delivered = torch.cat([batch.sample_ids for batch in expected])
    assert not bad & set(delivered.tolist())
    assert len(delivered) == 8 * 24
    assert (totals["bad_samples_digest"], totals["bad_samples_undecodable"]) == (2, 2)
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {row["sample_id"] for row in rows} == bad
    assert {row["name"] for row in rows if row["sample_id"] == 60} == {"000000060.jpg"}
    for world in (2, 3):
        loaders = [StreamLoader(config, rank, world) for rank in range(world)]
        parts = [take(loader, 8) for loader in loaders]
        for number in range(8):
            assert_same(joined([part[number] for part in parts]), joined([expected[number]]))
        for loader in loaders:
            loader.close()
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == len(rows)


def test_more_bad_samples_than_allowed_stop_the_run_with_their_names(damaged: tuple[Path, set[int]]) -> None:
    folder, _ = damaged
    with StreamLoader(stream_config(folder)) as loader, pytest.raises(QuarantineFull, match=r"000000\d+\.jpg in .*shard-00000\d.tar"):
        take(loader, 8)


def test_a_truncated_shard_stops_the_run_with_its_name(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, photographs(60), [20, 20, 20])
    with open(tmp_path / "shard-000001.tar", "r+b") as file:
        file.truncate(30_000)
    with StreamLoader(stream_config(tmp_path)) as loader, pytest.raises(ShardCorrupt, match=r"shard-000001.tar: 30,000 bytes long"):
        take(loader, 2)


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    write_dataset(tmp_path, photographs(96), [96])
    with StreamLoader(stream_config(tmp_path, ready_batches=1)) as loader:
        iterator = iter(loader)
        next(iterator)
        with open(tmp_path / "shard-000000.tar", "r+b") as file:
            file.truncate(10_000)
        with pytest.raises(ShardCorrupt, match="cut short"):
            list(itertools.islice(iterator, 3))


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, photographs(48), [24, 24])
    (tmp_path / "shard-000000.tar.idx").unlink()
    with StreamLoader(stream_config(tmp_path)) as loader, pytest.raises(ManifestMismatch, match=r"shard-000000.tar has no readable index"):
        take(loader, 2)


def test_positions_of_other_runs_are_refused(dataset: Path, tmp_path: Path) -> None:
    with StreamLoader(stream_config(dataset)) as loader:
        state = loader.state_dict()
        for key, message in (("seed", "seed"), ("shuffle_block", "shuffle_block"), ("data_set", "other shards"), ("pad", "data.tail")):
            with pytest.raises(ManifestMismatch, match=message):
                loader.load_state_dict({**state, key: state[key] + 1})
        with pytest.raises(OrderError, match="lanes"):
            loader.load_state_dict({**state, "lanes": 7})


def test_more_ranks_than_samples_in_a_batch_are_refused(dataset: Path) -> None:
    with pytest.raises(OrderError, match="25 ranks share 24 samples"):
        StreamLoader(stream_config(dataset), 0, 25)


@pytest.fixture
def quiet() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before, "at most, because threads of an earlier test may have ended meanwhile"


def test_nothing_is_left_behind_when_iteration_is_abandoned(dataset: Path, quiet: None) -> None:
    process = psutil.Process()
    with StreamLoader(stream_config(dataset)) as loader:
        take(loader, 1)
    gc.collect()
    files = process.num_fds()
    for _ in range(5):
        with StreamLoader(stream_config(dataset)) as loader:
            take(loader, 5)
    gc.collect()
    assert process.num_fds() <= files


def test_bad_samples_are_counted_over_ranks_and_attempts(damaged: tuple[Path, set[int]], tmp_path: Path) -> None:
    folder, bad = damaged
    config = replace(stream_config(folder, max_bad_fraction=2.5 / 101), quarantine=tmp_path / "quarantine.jsonl")

    def one_after_another() -> None:
        for rank in range(4):  # none of the four meets three by itself
            with StreamLoader(config, rank, 4) as loader:
                take(loader, 4)

    with pytest.raises(QuarantineFull, match="3 of 101 samples"):
        one_after_another()
    for rank in range(4):
        with StreamLoader(config, rank, 4) as loader:
            assert len(loader.quarantine) == 3
    with open(tmp_path / "quarantine.jsonl", "a") as file:
        file.write('{"sample_id": 1')  # a crash cut this line short
    wide = replace(config, data=replace(config.data, max_bad_fraction=0.1))
    with StreamLoader(wide) as loader:
        take(loader, 8)
    rows = [line for line in (tmp_path / "quarantine.jsonl").read_text().splitlines() if line.endswith("}")]
    assert sorted(json.loads(row)["sample_id"] for row in rows) == sorted(bad)


def test_a_bad_sample_alone_in_its_block_is_replaced_from_the_next(damaged: tuple[Path, set[int]]) -> None:
    folder, bad = damaged
    with StreamLoader(stream_config(folder, max_bad_fraction=0.1, shuffle_block=1)) as loader:
        delivered = torch.cat([batch.sample_ids for batch in take(loader, 8)])
    assert not bad & set(delivered.tolist())


def test_bad_samples_keep_no_batch_in_memory(damaged: tuple[Path, set[int]]) -> None:
    folder, _ = damaged
    with StreamLoader(stream_config(folder, max_bad_fraction=0.1)) as loader:
        take(loader, 40)
        gc.collect()
        pictures = [item for item in gc.get_objects() if type(item) is torch.Tensor and item.shape == (24, 64, 64, 3)]
        assert len(pictures) < 40  # kept by other tests' fixtures; four bad samples that kept a batch each epoch would add 40


def test_a_shard_that_is_gone_stops_the_run_or_is_replaced_sample_by_sample(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", photographs(101), [1, 40, 3, 37, 20])
    (tmp_path / "set" / "shard-000004.tar").unlink()
    config = replace(stream_config(tmp_path / "set", max_bad_fraction=0.3), quarantine=tmp_path / "quarantine.jsonl")
    with StreamLoader(config) as loader, pytest.raises(ShardCorrupt, match=r"shard-000004.tar: missing"):
        take(loader, 8)
    with StreamLoader(replace(config, data=replace(config.data, unavailable="substitute"))) as loader:
        delivered = torch.cat([batch.sample_ids for batch in take(loader, 8)])
        assert loader.counters.totals()["bad_samples_unavailable"] == len(loader.quarantine)
    assert len(delivered) == 8 * 24
    assert max(delivered.tolist()) == 80
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {row["sample_id"] for row in rows} <= set(range(81, 101))
    assert all(row["cause"] == "unavailable" and "shard-000004.tar: missing" in row["reason"] for row in rows)
    narrow = replace(config, quarantine=None, data=replace(config.data, unavailable="substitute", max_bad_fraction=0.01))
    with StreamLoader(narrow) as loader, pytest.raises(QuarantineFull, match=r"shard-000004.tar: missing"):
        take(loader, 8)


def test_what_lies_in_a_lost_shard_is_no_substitute_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, photographs(101), [1, 40, 3, 37, 20])
    (tmp_path / "shard-000001.tar").unlink()
    drawn: list[int] = []
    plan = Dataset._plan

    def noted(self: Dataset, epoch: int, slots: NDArray[np.int64], ids: NDArray[np.int64]) -> PlannedSamples:
        if len(ids) == 1 and self.lost:
            drawn.extend(ids.tolist())
        return plan(self, epoch, slots, ids)

    monkeypatch.setattr(Dataset, "_plan", noted)
    with StreamLoader(stream_config(tmp_path, max_bad_fraction=0.5, threads=1, unavailable="substitute")) as loader:
        take(loader, 8)
    assert drawn
    assert not set(drawn) & set(range(1, 41))


def test_what_was_found_bad_once_is_not_delivered_by_this_rank_when_it_is_well_again(dataset: Path, reference: list[Batch]) -> None:
    """A rank that meets it for the first time would find it well, one that knows it must not."""
    (sample_id, *_) = reference[5].sample_ids.tolist()
    with StreamLoader(stream_config(dataset, max_bad_fraction=0.1)) as loader:
        loader.quarantine.add(BadSample(sample_id, "name", "shard", "unavailable", "the store was away"))
        found = take(loader, 6)
    assert all(sample_id not in batch.sample_ids.tolist() for batch in found)
    assert found[5].sample_ids.tolist()[1:] == reference[5].sample_ids.tolist()[1:]


@pytest.mark.parametrize("digests", ["read", "none"])
def test_tars_of_somebody_else_are_read_by_indexes_that_lie_elsewhere(
    dataset: Path, reference: list[Batch], tmp_path: Path, digests: str
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for tar in dataset.glob("*.tar"):
        (tars / tar.name).write_bytes(tar.read_bytes())
    assert main(["index", str(tars), "--to", str(tmp_path / "indexes"), "--digests", digests]) == 0
    with StreamLoader(stream_config(tmp_path / "indexes")) as loader:
        for found, expected in zip(take(loader, len(reference)), reference, strict=True):
            assert torch.equal(found.sample_ids, expected.sample_ids)
            assert torch.equal(found.images, expected.images)
    assert sorted(path.name for path in tars.iterdir()) == sorted(path.name for path in dataset.glob("*.tar"))
