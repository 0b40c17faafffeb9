"""The model behind docs/scaling.md, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.scaling_model import (
    Bucket,
    Cluster,
    Turn,
    Work,
    all_reduce_seconds,
    cache_hits,
    exposed_seconds,
    host_seconds,
    sent_bytes,
    step_seconds,
    strong_efficiency,
    weak_efficiency,
    zero_bytes,
)

CLUSTER = Cluster(node_bandwidth=100.0, network_bandwidth=40.0, latency=0.01, host_latency=0.001, gpus_per_node=4)


def test_a_ring_sends_each_byte_twice_but_its_own_part() -> None:
    assert sent_bytes("all_reduce", 800, 4) == 2 * 800 * 3 / 4
    assert sent_bytes("all_gather", 800, 8) == 800 * 7 / 8
    assert sent_bytes("all_reduce", 800, 1) == 0


def test_zero_sends_as_much_as_ddp_and_in_stage_3_half_as_much_again() -> None:
    ddp = zero_bytes(0, 800, 4)
    assert [zero_bytes(stage, 800, 4) / ddp for stage in (1, 2, 3)] == [1.0, 1.0, 1.5]


def test_a_sum_takes_its_bytes_at_the_narrowest_link_and_its_hops() -> None:
    assert all_reduce_seconds(80, 1, CLUSTER) == 0.0
    assert all_reduce_seconds(80, 4, CLUSTER) == pytest.approx(2 * 80 * 3 / 4 / 100 + 2 * 2 * 0.01)
    assert all_reduce_seconds(80, 8, CLUSTER) == pytest.approx(2 * 80 * 7 / 8 / 40 + 2 * 3 * 0.01)


def test_only_what_outlasts_the_backward_pass_is_waited_for() -> None:
    two = [Bucket(100, 0.5), Bucket(20, 1.0)]  # 1.54 s and 0.34 s on 4 ranks
    assert exposed_seconds(two, 10.0, 4, CLUSTER) == pytest.approx(0.34)
    assert exposed_seconds(two, 1.0, 4, CLUSTER) == pytest.approx(0.5 + 1.54 + 0.34 - 1.0)
    assert exposed_seconds(two, 10.0, 1, CLUSTER) == 0.0


def test_a_step_is_computation_what_is_waited_for_and_small_sums_or_the_sum_of_the_processors() -> None:
    work = Work(fixed=1.0, picture=0.5, turns=(Turn(0.5, (Bucket(20, 1.0),)),), small_sums=(0, 0), host_sums=1)
    assert work.compute(6) == 4.0
    assert step_seconds(work, 6, 4, CLUSTER) == pytest.approx(4.0 + 0.34 + 2 * 0.04)
    assert weak_efficiency(work, 6, 4, CLUSTER) == pytest.approx(4.0 / 4.42)
    assert host_seconds(work, 1000, CLUSTER) == pytest.approx(2 * 999 * 0.001)
    slow = Cluster(100.0, 40.0, 0.0, 1.0, 4)
    assert step_seconds(work, 6, 4, slow) == pytest.approx(6.0)


def test_groups_of_batch_norm_limit_strong_scaling_and_the_fullest_rank_sets_the_pace() -> None:
    free = Work(fixed=0.0, picture=1.0, turns=())
    near = Cluster(math.inf, math.inf, 0.0, 0.0, 8)
    assert strong_efficiency(free, 64, 4, near) == 1.0
    assert strong_efficiency(free, 64, 4, near, unit=32) is None
    assert strong_efficiency(free, 96, 2, near, unit=32) == pytest.approx(96 / (2 * 64))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_cache_of_a_part_of_a_shuffled_set_hits_less_often_than_that_part(share: float) -> None:
    shards, epochs = 2000, 6
    expected = (share + (1 - share) * math.log(1 - share)) * (epochs - 1) / epochs
    assert cache_hits(shards, int(share * shards), 1, epochs, seed=1) == pytest.approx(expected, abs=0.01)
    assert cache_hits(shards, shards, 1, epochs) == pytest.approx((epochs - 1) / epochs)
