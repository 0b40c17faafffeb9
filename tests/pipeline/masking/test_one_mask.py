"""One mask for a whole batch: the same on every rank and after a resume, another one in every batch."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.masking import MaskConfig, OneMask, RandomBlock, mask_source
from pipeline.stream.fixed import held_back_choice
from pipeline.stream.loader import StreamConfig, StreamLoader
from tests.datasets import photographs, write_dataset

SIZE, BATCH = 32, 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StreamConfig:
    """Two data sets of which one picture is broken."""
    folder, pictures = tmp_path_factory.mktemp("sets"), photographs(100, 48, 48)
    pictures[7] = b"no picture"
    write_dataset(folder / "a", pictures, [50, 50])
    write_dataset(folder / "b", pictures[:50:-1], [49])
    sources = {name: SourceConfig(str(folder / name)) for name in ("a", "b")}
    data = DataConfig(sources=sources, threads=2, lanes=2, shuffle_block=16, max_bad_fraction=0.1)
    mask = mask_source(MaskConfig(kind="block", one_per_batch=True))
    return StreamConfig(data, SIZE, BATCH, seed=5, mask=mask, held_back=0.1)


def masks(config: StreamConfig, world: int = 1, batches: int = 40) -> list[np.ndarray]:
    """The masks of batches, (BATCH, SIZE, SIZE) each, with the slices of all ranks put together."""
    ranks = list[list[np.ndarray]]()
    for rank in range(world):
        with StreamLoader(config, rank, world) as loader:
            ranks.append([batch.masks.numpy().copy() for batch, _ in zip(loader, range(batches), strict=False)])
    return [np.concatenate(parts) for parts in zip(*ranks, strict=True)]


def test_all_pictures_of_a_batch_have_the_same_mask_and_batches_differ(config: StreamConfig) -> None:
    found = masks(config)
    assert all((batch == batch[:1]).all() for batch in found)  # also where a substitute came in
    assert all(not np.array_equal(first[0], second[0]) for first, second in itertools.pairwise(found))
    assert len({batch[0].tobytes() for batch in found}) == len(found) == 40
    others = masks(replace(config, seed=6), batches=3)
    assert not np.array_equal(others[0], found[0])


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_sees_the_same_mask(config: StreamConfig, world: int) -> None:
    assert all(np.array_equal(one, several) for one, several in zip(masks(config), masks(config, world), strict=True))


def test_a_resumed_run_goes_on_with_the_masks_that_would_have_come(config: StreamConfig) -> None:
    whole = masks(config)
    with StreamLoader(config) as loader:
        batches = iter(loader)
        for _ in range(23):
            next(batches)
        state = loader.state_dict()
    with StreamLoader(config, 1, 2) as loader:
        loader.load_state_dict(state)
        for expected, batch in zip(whole[23:], loader, strict=False):
            assert np.array_equal(batch.masks.numpy(), expected[BATCH // 2 :])


def test_held_back_pictures_keep_masks_of_their_own(config: StreamConfig) -> None:
    per_picture = replace(config, mask=RandomBlock())
    found = []
    for each in (config, per_picture):
        with StreamLoader(each) as loader:
            found.append(held_back_choice(loader, 6).read(range(6))[0].masks.numpy())
    assert isinstance(config.mask, OneMask)
    assert np.array_equal(*found)
    assert len({mask.tobytes() for mask in found[0]}) == 6
