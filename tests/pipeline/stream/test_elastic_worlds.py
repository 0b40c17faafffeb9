"""Global batches are the same bits whatever the world, the threads, the cache, the bad samples and the moment of an interruption.

What a batch must hold is computed here from the definition (ids of the order, one decode and one mask a sample), without the loader.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from launch.local.object_store import SeaweedFS
from pipeline.config import DataConfig
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.stream.order import SampleOrder
from shards.dataset.manifest import Manifest, ShardRecord
from shards.keyed import derived_keys, key_of, sample_keys, uniforms
from shards.store import Store
from tests.datasets import photographs, upload, write_dataset

DECODER = make_decoder()
WORLDS, THREADS = range(1, 9), (1, 2, 4)
COUNTS = [1, 17, 3, 40, 0, 22, 5]
TOTAL = sum(COUNTS)
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Speckle:
    """A mask of independent pixels, enough to see that it follows the key."""

    def draw(self, key: int, out: NDArray[np.bool_]) -> None:
        out[:] = (uniforms(key, 99, out.size) < 0.3).reshape(out.shape)


@dataclass(frozen=True)
class DataSet:
    """Shards and what is in them; the bytes of `flipped` samples are others than those that were stored."""

    url: str
    manifest: Manifest = field(repr=False)
    pictures: Sequence[bytes] = field(repr=False)
    flipped: frozenset[int]
    options: Mapping[str, str]


class Truth:
    """The global batches of one run, from the definition."""

    def __init__(self, data_set: DataSet, config: StreamConfig) -> None:
        self.data_set, self.config = data_set, config
        self.order = self._order(config, config.data.lanes)
        self.epoch, self.consumed = 0, 0

    def _order(self, config: StreamConfig, lanes: int) -> SampleOrder:
        return SampleOrder(self.data_set.manifest, config.seed, config.global_batch, lanes, config.data.shuffle_block, config.data.tail)

    def change_batch(self, global_batch: int) -> None:
        self.config = replace(self.config, global_batch=global_batch)
        self.order = self._order(self.config, self.order.lanes)
        self._settle()

    def next(self) -> Tensors:
        """Images, masks, labels, sample ids and keys of the next global batch."""
        size, config = self.config.image_size, self.config
        ids = self.order.take(self.epoch, self.consumed, slice(0, config.global_batch))
        images, masks = np.empty((len(ids), size, size, 3), np.uint8), np.empty((len(ids), size, size), np.bool_)
        for place, sample in enumerate(ids.tolist()):
            others = self.order.substitutes(self.epoch, self.consumed, place)
            ids[place] = next(other for other in itertools.chain([sample], others) if self._crop(other, images[place]))
        keys = sample_keys(config.seed, self.epoch, ids)
        for mask, key in zip(masks, keys.tolist(), strict=True):
            Speckle().draw(key_of(key, 2), mask)
        self.consumed += config.global_batch
        self._settle()
        return tuple(map(torch.from_numpy, (images, masks, ids % 7, ids, derived_keys(keys, 3).view(np.int64))))

    def _crop(self, sample: int, out: NDArray[np.uint8]) -> bool:
        """True if a sample can be used in this epoch: bytes that its crop doesn't need may be damaged."""
        if sample in self.data_set.flipped:
            return False
        ((key,), data) = sample_keys(self.config.seed, self.epoch, [sample]).tolist(), self.config.data
        rule = CropRule(data.crop, data.flip, data.max_pixels)
        return DECODER.crops([self.data_set.pictures[sample]], [out], rule, [key]) == [None]

    def _settle(self) -> None:
        if not self.order.has_batch(self.consumed):
            self.epoch, self.consumed = self.epoch + 1, 0


def joined(parts: Sequence[Batch]) -> Tensors:
    return tuple(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "masks", "labels", "sample_ids", "keys"))


def run(config: StreamConfig, world: int, threads: int, state: dict[str, int] | None, truth: Truth, batches: int) -> dict[str, int]:
    """Starts `world` ranks where `state` says, checks their batches against the truth, and stops them. Returns the state to go on from."""
    config = replace(config, global_batch=truth.config.global_batch, data=replace(config.data, threads=threads))
    with ExitStack() as stack:
        loaders = [stack.enter_context(StreamLoader(config, rank, world)) for rank in range(world)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        for parts in itertools.islice(zip(*loaders, strict=True), batches):
            where = (truth.epoch, truth.consumed // truth.config.global_batch)
            assert {(part.epoch, part.index) for part in parts} == {where}
            sizes = [len(part.sample_ids) // config.unit for part in parts]
            assert max(sizes) - min(sizes) <= 1
            for found, expected in zip(joined(parts), truth.next(), strict=True):
                assert torch.equal(found, expected), f"batch {where} of {world} ranks with {threads} threads is another"
        states = [json.dumps(loader.state_dict()) for loader in loaders]
        assert len(set(states)) == 1
    found_state: dict[str, int] = json.loads(states[0])
    return found_state


def stream_config(data_set: DataSet, global_batch: int = 16, unit: int = 1, seed: int = 3, **data: object) -> StreamConfig:
    values: dict[str, object] = {"shuffle_block": 7, "lanes": 4, "max_bad_fraction": 1.0, "storage_options": dict(data_set.options), **data}
    return StreamConfig(
        DataConfig(shards=data_set.url, **values),  # type: ignore[arg-type]
        image_size=20,
        global_batch=global_batch,
        seed=seed,
        mask=Speckle(),
        unit=unit,
    )


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> list[DataSet]:
    """One whole and one where samples are damaged before they are stored (undecodable) and after (digest)."""
    made = []
    for name, undecodable, flipped in (
        ("whole", (), ()),
        ("damaged", (0, 2, 5, 8, 30, 31, 32, 33, 50, 53, 61, 62, 65, TOTAL - 1), (10, 44, 83)),
    ):
        pictures = photographs(TOTAL, 64, 30)
        for sample in undecodable:
            whole = pictures[sample]
            scan = whole.index(b"\xff\xda")
            early = scan + (len(whole) - scan) * 7 // 10  # the rows above it decode: good in the epochs whose crop lies there
            pictures[sample] = (b"not a picture", whole[: len(whole) // 2], whole[:early] + b"\xff\xd9" + whole[early + 2 :])[sample % 3]
        folder = tmp_path_factory.mktemp(name)
        manifest = write_dataset(folder, pictures, COUNTS)
        for sample in flipped:
            (shard,), (row,) = manifest.locate([sample])
            entry = manifest.read_index(Store(str(folder)), int(shard)).rows[int(row)]
            with open(folder / manifest.records[int(shard)].name, "r+b") as file:
                file.seek(int(entry["offset"]) + int(entry["length"]) // 2)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 4]))
        made.append(DataSet(str(folder), manifest, pictures, frozenset(flipped), {}))
    return made


# ---- ids alone, at every scale


@settings(max_examples=20)
@given(data=st.data())
def test_a_run_whose_world_changes_at_random_delivers_every_sample_of_each_epoch_once(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.one_of(st.integers(1, 30), st.integers(1, 5000)), min_size=1, max_size=25), "samples a shard")
    total = sum(counts)
    manifest = Manifest(tuple(ShardRecord(f"{number}.tar", 1, f"{number:064x}", count, "") for number, count in enumerate(counts)))
    unit = data.draw(st.integers(1, 6), "batch-norm group")
    least = -(-total // (25 * unit))  # no more than 25 batches an epoch
    units = data.draw(st.integers(least, max(least, total // unit)), "units a batch") if total >= unit else 1
    tail = data.draw(st.sampled_from(["drop", "pad"]), "tail") if units * unit <= total else "pad"
    lanes, block = data.draw(st.integers(1, 80), "lanes"), data.draw(st.integers(1, 6000), "shuffle_block")
    chance = random.Random(data.draw(st.integers(0, 2**32), "when the world changes"))
    batch = units * unit
    reference = SampleOrder(manifest, 11, batch, lanes, block, tail)  # type: ignore[arg-type]
    for epoch in range(2):
        delivered, consumed = [], 0
        while reference.has_batch(consumed):
            world = chance.randint(1, min(8, units))
            ranks = [SampleOrder(manifest, 11, batch, lanes, block, tail) for _ in range(world)]  # type: ignore[arg-type]
            for _ in range(chance.randint(1, 8)):
                if reference.has_batch(consumed):
                    shares = [order.rank_slice(rank, world, unit) for rank, order in enumerate(ranks)]
                    ids = np.concatenate([order.take(epoch, consumed, part) for order, part in zip(ranks, shares, strict=True)])
                    np.testing.assert_array_equal(ids, reference.take(epoch, consumed, slice(0, batch)))
                    delivered.append(ids)
                    consumed += batch
        often = np.bincount(np.concatenate(delivered), minlength=total)
        assert len(often) == total
        if tail == "drop":
            assert often.max() == 1
            assert np.count_nonzero(often == 0) == total % batch
        else:
            assert often.min() >= 1
            assert often.sum() - total < batch + math.gcd(lanes, batch) * reference.per_lane


# ---- pixels, masks, labels, ids and keys through the loader


@settings(max_examples=15)
@given(data=st.data())
def test_same_bits_for_any_settings_worlds_threads_and_interruptions(data_sets: list[DataSet], data: st.DataObject) -> None:
    data_set = data.draw(st.sampled_from(data_sets), "data set")
    unit = data.draw(st.sampled_from([1, 1, 2, 3, 5]), "batch-norm group")
    config = stream_config(
        data_set,
        global_batch=unit * data.draw(st.integers(1, 30 // unit), "units a batch"),
        unit=unit,
        seed=data.draw(st.integers(0, 2**63 - 1), "seed"),
        lanes=data.draw(st.integers(1, 64), "lanes"),
        shuffle_block=data.draw(st.integers(1, 100), "shuffle_block"),
        tail=data.draw(st.sampled_from(["drop", "pad"]), "tail"),
        crop=data.draw(st.sampled_from(["random", "random_resized", "center"]), "crop"),
        ready_batches=data.draw(st.integers(1, 4), "ready_batches"),
    )
    chance = random.Random(data.draw(st.integers(0, 2**32), "worlds and interruptions"))
    truth, state = Truth(data_set, config), None
    for _ in range(5):
        units = truth.config.global_batch // unit
        state = run(config, chance.randint(1, min(8, units)), chance.choice(THREADS), state, truth, chance.randint(1, 5))
        if chance.random() < 0.4:
            step = math.lcm(unit, truth.order.lanes)
            truth.change_batch(step * chance.randint(1, max(1, 40 // step)))


@pytest.mark.parametrize("threads", THREADS)
def test_same_bits_around_bad_samples_for_every_world(data_sets: list[DataSet], threads: int) -> None:
    config = stream_config(data_sets[1])
    for world in WORLDS:
        run(config, world, threads, None, Truth(data_sets[1], config), 20)
    truth, out = Truth(data_sets[1], config), np.empty((20, 20, 3), np.uint8)
    fates = set()
    for truth.epoch in range(4):
        fates.add(tuple(truth._crop(sample, out) for sample in range(TOTAL)))
    assert len(fates) > 1  # some are damaged where only the crops of some epochs look


@pytest.mark.parametrize("tail", ["drop", "pad"])
def test_same_bits_after_an_interruption_at_every_position_of_two_epochs(data_sets: list[DataSet], tail: str) -> None:
    config = stream_config(data_sets[1], global_batch=12, unit=2, tail=tail)
    states: list[dict[str, int]] = []
    with StreamLoader(replace(config, epochs=2), 1, 3) as loader:
        states.append(loader.state_dict())
        states += [loader.state_dict() for _ in loader]
    assert len(states) == 1 + 2 * (TOTAL // 12 if tail == "drop" else -(-TOTAL // 12))
    chance = random.Random(7)
    for state in states:
        truth = Truth(data_sets[1], config)
        truth.epoch, truth.consumed = state["epoch"], state["consumed"]
        run(config, chance.randint(1, 6), chance.choice(THREADS), state, truth, 1)


def test_a_world_that_changes_at_every_batch_delivers_each_sample_of_four_epochs_once(data_sets: list[DataSet]) -> None:
    config = stream_config(data_sets[0], global_batch=8)
    truth, state, chance = Truth(data_sets[0], config), None, random.Random(1)
    for _ in range(4):
        seen: list[int] = []
        epoch = truth.epoch
        while truth.epoch == epoch:
            seen += truth.order.take(epoch, truth.consumed, slice(0, 8)).tolist()  # what `run` then asks of the ranks
            state = run(config, chance.choice(WORLDS), 1, state, truth, 1)
        assert len(set(seen)) == len(seen) == TOTAL - TOTAL % 8


# ---- the same from a real store, with every kind of cache


@pytest.fixture(scope="module")
def remote(s3: SeaweedFS, data_sets: list[DataSet]) -> DataSet:
    return replace(data_sets[1], url=upload(s3, "elastic", Path(data_sets[1].url)), options=s3.options)


@pytest.mark.server
@pytest.mark.parametrize(("cache", "worlds"), [("enough", (1, 7, 3)), ("too small", (2, 8, 4)), ("none", (5, 1, 6))])
def test_same_bits_from_a_store_for_any_cache_while_the_world_changes(
    remote: DataSet, tmp_path: Path, cache: str, worlds: tuple[int, ...]
) -> None:
    sizes = sorted(record.size for record in remote.manifest.records)
    gigabytes = 1.2 * sizes[-1] / 1e9 if cache == "too small" else 1.0
    assert sum(sizes) > 2 * sizes[-1]
    config = stream_config(remote, cache="none" if cache == "none" else str(tmp_path / "cache"), cache_gb=gigabytes, retries=2)
    truth, state, chance = Truth(remote, config), None, random.Random(cache)
    for world, threads in zip(worlds, chance.sample(THREADS, 3), strict=True):
        state = run(config, world, threads, state, truth, chance.randint(2, 4))
    if cache != "none":
        held = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
        assert 0 < held <= gigabytes * 1e9
