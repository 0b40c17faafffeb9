"""ZeRO's modes on several ranks: the state that they divide, uneven slices, and gradients that are not finite."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.config import TrainingConfig
from pipeline.recipes.player import Losses
from pipeline.stream.loader import Batch
from pipeline.training.ranks.world import World, join
from tests.pipeline.training.engine.test_zero import ADAM, SGD, ZERO, Rule, State, assert_equal, pictures, step_of, train, whole
from tests.pipeline.training.test_step import Line

SLOW_IMPORTS = ("deepspeed", "torch._inductor.compile_fx", "torch.distributed.fsdp", "torch.distributed.tensor")


def in_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns the results of `work(rank, *arguments)` on each of several ranks, processes of their own, which are forks of one that has
    imported what they need: torch and DeepSpeed take eight seconds of a processor."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    forks = get_context("forkserver")
    forks.set_forkserver_preload([*SLOW_IMPORTS, work.__module__])
    with ProcessPoolExecutor(size, forks) as pool:
        ranks = [pool.submit(_as_rank, rank, size, store.port, work, arguments) for rank in range(size)]
        try:
            for rank in as_completed(ranks, timeout=550):
                rank.result()
        except BaseException:  # the others wait for a rank that has failed
            for process in list(pool._processes.values()):
                process.kill()
            raise
        return [rank.result() for rank in ranks]


def _as_rank(rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return work(rank, *arguments)


@contextmanager
def _joined(training: TrainingConfig) -> Iterator[World]:
    """Joins the ranks anew, any number of times."""
    forget_accelerate()
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) + 1)
    with join(training) as world:
        yield world


def _round_trip(start: State) -> list[State]:
    found = []
    for mode in ("zero1", "zero3", "zero2", "ddp"):
        training = TrainingConfig(mode=mode)  # type: ignore[arg-type]
        with _joined(training) as world:
            start = {file: dict(world.broadcast_tensors(tensors)) for file, tensors in start.items()}
            found.append(train(ADAM, training, world, start, steps=0))
            start = found[-1] or {file: {} for file in start}
    return found


def forget_accelerate() -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def _everything(rank: int, start: State) -> dict[Any, Any]:
    """Returns all results that the tests below need, in one start of the ranks, because a start costs more than all of them."""
    found: dict[Any, Any] = {"round trip": _round_trip(start)}
    if os.environ["WORLD_SIZE"] == "2":
        found |= {("uneven", mode, broken): _uneven(rank, mode, broken) for mode in ("ddp", *ZERO) for broken in (0, 1)}
        found |= {("statistics", mode): _idle_statistics(rank, mode) for mode in ("ddp", "zero2", "zero3")}
    return found


@pytest.fixture(scope="module")
def start() -> State:
    with join(TrainingConfig()) as world:
        return train(ADAM, TrainingConfig(), world)


@pytest.fixture(scope="module")
def ranks(start: State) -> Callable[[int], list[dict[Any, Any]]]:
    return functools.cache(lambda size: in_ranks(size, _everything, start))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [2, 3])
def test_several_ranks_hold_exactly_what_they_were_given(start: State, ranks: Callable[[int], list[dict[Any, Any]]], size: int) -> None:
    first, *others = (found["round trip"] for found in ranks(size))
    for found in first:
        assert_equal(found, start)
    assert all(found == {} for rank in others for found in rank[:3])  # only rank 0 keeps what was gathered


def _uneven(rank: int, mode: str, broken_rank: int) -> tuple[State, State, list[float], list[str], bool, float]:
    training = TrainingConfig(mode=mode, micro_batch=1)  # type: ignore[arg-type]
    with _joined(training) as world:
        torch.manual_seed(rank)
        recipe = Rule(SGD)
        step = step_of(recipe, world, training, 3)
        images = pictures(3).images[slice(0, 1) if rank == 0 else slice(1, 3)]
        ids = torch.arange(len(images))
        good = Batch(images, torch.zeros(len(images), 4, 4, dtype=torch.bool), None, ids, 0, 0, ids)
        step(good, rate=1.0)
        before, draws = whole(step.engines[0]), list(recipe.draws)
        usual = recipe.loss
        if rank == broken_rank:
            broken = lambda views, networks: Losses(usual(views, networks).total * float("nan"), {})  # noqa: E731
            recipe.players = (replace(recipe.players[0], loss=broken),)
            step.engines[0].player = recipe.players[0]
        result = step(good, rate=1.0)
        after = whole(step.engines[0])
        step.engines[0].player = replace(recipe.players[0], loss=usual)
        again = step(good, rate=1.0)
        norm = again.gradient_norms["rule"]
        step.engines[0].close()
        return before, after, draws, result.skipped, result.gradient_norms["rule"] < float("inf"), norm


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["ddp", *ZERO])
@pytest.mark.parametrize("broken_rank", [0, 1])
def test_uneven_shares_and_a_gradient_that_is_not_finite_on_one_rank(
    ranks: Callable[[int], list[dict[Any, Any]]], mode: str, broken_rank: int
) -> None:
    """Rank 0 has 1 of 3 samples, rank 1 has 2 in two passes: the gradient is that of all 3. Then one rank's gradient is not a number:
    both ranks leave weights and optimiser unchanged, and the next step is as if the bad one had not happened."""
    with join(TrainingConfig()) as world:
        recipe = Rule(SGD)
        alone = step_of(recipe, world, TrainingConfig(), 3)
        alone(pictures(3), rate=1.0)
        expected = whole(alone.engines[0])
        norm = alone(pictures(3), rate=1.0).gradient_norms["rule"]
    results = [found["uneven", mode, broken_rank] for found in ranks(2)]
    before, after = results[0][:2]
    for file, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.allclose(before[file][name], tensor, rtol=1e-5, atol=1e-7), name
    assert_equal(after, before)
    for rank, (_, _, draws, skipped, finite, found) in enumerate(results):
        assert skipped == ["rule"]
        assert not finite
        assert found == pytest.approx(norm, rel=1e-5)
        if rank == 0 and mode in ("zero2", "zero3"):
            assert len(draws) == 2  # the pass that does not count
            assert draws[0] == draws[1]  # took no random number away
        else:
            assert len(draws) == 1 + rank


def _idle_statistics(rank: int, mode: str) -> tuple[float, float]:
    training = TrainingConfig(mode=mode, micro_batch=1)  # type: ignore[arg-type]
    with _joined(training) as world:
        recipe = Line()
        step = step_of(recipe, world, training, 3)
        images = pictures(3).images[slice(0, 1) if rank == 0 else slice(1, 3)]
        ids = torch.arange(len(images))
        result = step(Batch(images, torch.zeros(len(images), 4, 4, dtype=torch.bool), None, ids, 0, 0, ids), rate=0.0)
        step.engines[0].close()
        return float(recipe.network[2].norm.running_mean), result.read()["line"]["total"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["ddp", "zero2", "zero3"])
def test_a_pass_that_does_not_count_leaves_no_statistics_and_no_loss(ranks: Callable[[int], list[dict[Any, Any]]], mode: str) -> None:
    outputs = pictures(3).images.float().flatten(1).sum(1) / 255 * 0.01
    for running_mean, loss in (found["statistics", mode] for found in ranks(2)):
        assert running_mean == pytest.approx(0.1 * float(outputs.mean()), rel=1e-5)
        assert loss == pytest.approx(float(outputs.mean()), rel=1e-5)
