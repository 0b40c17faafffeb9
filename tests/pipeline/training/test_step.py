"""The arithmetic of a step: micro-batches, schedules and exact gradients whatever the shares."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ScheduleConfig
from pipeline.mapping import ConfigError
from pipeline.stream.order import share
from pipeline.training.step import micro_batches, rate_factor


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(1, 100))
def test_every_rank_takes_the_same_number_of_micro_steps_and_the_last_is_never_empty(units: int, world: int, unit: int, micro: int) -> None:
    world = min(world, units)
    micro = max(micro, unit)
    shares = [share(units * unit, rank, world, unit) for rank in range(world)]
    sizes = [part.stop - part.start for part in shares]
    cut = [micro_batches(size, max(sizes), micro, unit) for size in sizes]
    assert len({len(parts) for parts in cut}) == 1
    for size, parts in zip(sizes, cut, strict=True):
        assert parts[0].start == 0
        assert parts[-1].stop == size
        assert parts[-1].start < parts[-1].stop
        assert all(left.stop == right.start for left, right in itertools.pairwise(parts))
        assert all((part.stop - part.start) <= micro and (part.stop - part.start) % unit == 0 for part in parts)


def test_a_batch_norm_group_that_fits_no_micro_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.micro_batch: 32 is less than the batch-norm group of 64"):
        micro_batches(64, 64, 32, 64)


def test_schedules() -> None:
    warm = ScheduleConfig("constant", warmup_steps=4)
    assert [rate_factor(warm, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = ScheduleConfig("cosine", warmup_steps=10, final_factor=0.1)
    assert rate_factor(cosine, 10, 110) == 1.0
    assert math.isclose(rate_factor(cosine, 60, 110), 0.55)
    assert rate_factor(cosine, 109, 110) < 0.101
    falling = ScheduleConfig("step", step_every=10, step_factor=0.5)
    assert [rate_factor(falling, step, 100) for step in (0, 9, 10, 19, 20)] == [1.0, 1.0, 0.5, 0.5, 0.25]
