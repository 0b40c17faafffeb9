"""ZeRO's modes in their differences from DDP: state that several ranks divide, state in and out, offload, and refusals."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.config import OptimiserConfig, TrainingConfig, check_mode
from pipeline.mapping import ConfigError
from pipeline.recipes.player import Losses, Player
from pipeline.stream.loader import Batch
from pipeline.stream.order import rank_slice
from pipeline.training.engine.engine import Engine
from pipeline.training.engine.optimiser_state import OptimiserMismatch
from pipeline.training.ranks.launcher import with_launcher_mode
from pipeline.training.ranks.world import World, join
from pipeline.training.step import TrainStep
from tests.conftest import ROOT
from tests.pipeline.training.test_step import Line, make_engine

ZERO = ["zero1", "zero2", "zero3"]
State = dict[str, dict[str, Tensor]]


def network() -> nn.Module:
    """Parameters that neither 2 nor 3 ranks divide evenly, and one that stage 3 does not keep gathered."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2501), nn.ReLU(), nn.Linear(2501, 7, bias=False), nn.Linear(7, 1))


class Rule:
    """A recipe of one player with any optimiser."""

    name = "rule"
    image_size, unit, mask = 4, 1, None

    def __init__(self, optimiser: OptimiserConfig) -> None:
        self.players = (Player("rule", network(), self.loss, optimiser),)
        self.draws: list[float] = []

    def views(self, images: Tensor, masks: Tensor, labels: Tensor | None, keys: Tensor) -> dict[str, Tensor]:
        return {"images": images.float() / 255}

    def loss(self, views: dict[str, Tensor], networks: Mapping[str, nn.Module]) -> Losses:
        self.draws.append(float(torch.rand(())))
        return Losses(networks["rule"](views["images"]).flatten().square(), {})


ADAM = OptimiserConfig(learning_rate=1e-3, weight_decay=0.01)
SGD = OptimiserConfig(kind="sgd", learning_rate=1e-3)


def pictures(count: int, first: int = 0, seed: int = 3) -> Batch:
    images = torch.randint(0, 256, (count, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))[first:]
    ids = torch.arange(len(images))
    return Batch(images, torch.zeros(len(images), 4, 4, dtype=torch.bool), None, ids, 0, 0, ids)


def step_of(recipe: Any, world: World, training: TrainingConfig, global_batch: int) -> TrainStep:
    training = replace(training, global_batch=global_batch)
    return TrainStep(recipe, [make_engine(recipe.players[0], world, training)], world, training)


def whole(engine: Engine) -> State:
    return {file: {name: tensor.clone() for name, tensor in tensors.items()} for file, tensors in engine.full_state().items()}


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for file, tensors in other.items():
        assert one[file].keys() == tensors.keys()
        assert [name for name, tensor in tensors.items() if not tensor.equal(one[file][name])] == []


def train(
    optimiser: OptimiserConfig, training: TrainingConfig, world: World, start: State | None = None, steps: int = 2, micro_batch: int = 2
) -> State:
    """Trains on whole batches of 5, from a state or from the seed, and returns the state afterwards."""
    recipe = Rule(optimiser)
    if start is not None:
        recipe.players[0].network.load_state_dict(start["rule"])
    rank = rank_slice(5, world.rank, world.size, 1)
    step = step_of(recipe, world, replace(training, micro_batch=micro_batch), 5)
    if start is not None:
        step.engines[0].load_optimiser({name: tensor.clone() for name, tensor in start["rule.optimiser"].items()})  # it keeps them
    for seed in range(steps):
        batch = pictures(5, seed=seed)
        step(Batch(batch.images[rank], batch.masks[rank], None, batch.sample_ids[rank], 0, 0, batch.keys[rank]), rate=1.0)
    found = whole(step.engines[0])
    step.engines[0].close()
    return found


def in_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns the results of `work(rank, *arguments)` on each of several ranks, processes of their own."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(size, get_context("spawn")) as pool:
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


@pytest.mark.parametrize(("mode", "offload"), [*((mode, "optimizer") for mode in ZERO), ("zero3", "parameters")])
def test_offloading_changes_nothing(mode: str, offload: str) -> None:
    for limit in (0.0, 0.01):
        results = []
        for training in (TrainingConfig(mode=mode), TrainingConfig(mode=mode, offload=offload)):  # type: ignore[arg-type]
            with join(training) as world:
                results.append(train(ADAM, replace(training, max_gradient_norm=limit), world))
        if not limit:
            assert_equal(*results)
        for file, tensors in results[0].items():  # with offload the norm is taken over other pieces, in another order
            for name, tensor in tensors.items():
                assert torch.allclose(results[1][file][name], tensor, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("optimiser", [ADAM, SGD], ids=["adam", "sgd"])
def test_state_goes_from_mode_to_mode_unchanged(optimiser: OptimiserConfig) -> None:
    """Each mode continues from the state of another: the same bits as in one mode all along, with one rank."""
    with join(TrainingConfig()) as world:
        expected = train(optimiser, TrainingConfig(), world)
        further = train(optimiser, TrainingConfig(), world, expected, micro_batch=5)
    assert any(name.endswith(("exp_avg", "momentum_buffer")) for name in expected["rule.optimiser"])
    for mode in ("zero1", "zero2", "zero3"):
        training = TrainingConfig(mode=mode)  # type: ignore[arg-type]
        with join(training) as world:
            assert_equal(train(optimiser, training, world, expected, steps=0), expected)
            assert_equal(train(optimiser, training, world, expected, micro_batch=5), further)


@contextmanager
def _joined(training: TrainingConfig) -> Iterator[World]:
    """Joins the ranks anew, any number of times."""
    _forget_accelerate()
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


def _forget_accelerate() -> None:
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


@pytest.mark.parametrize("mode", ZERO)
def test_state_that_does_not_fit_is_refused(mode: str) -> None:
    training = TrainingConfig(mode=mode)  # type: ignore[arg-type]
    with join(training) as world:
        found = train(ADAM, training, world)["rule.optimiser"]
        engine = make_engine(Rule(ADAM).players[0], world, training)
        with pytest.raises(OptimiserMismatch, match="fits no parameter of this network"):
            engine.load_optimiser({f"other.{name}": tensor for name, tensor in found.items()})
        with pytest.raises(OptimiserMismatch, match=r"updated some parameters more often .*--training\.mode ddp"):
            engine.load_optimiser({name: tensor + (name == "1.weight/step") for name, tensor in found.items()})
        with pytest.raises(OptimiserMismatch, match="updated some parameters more often"):
            engine.load_optimiser({name: tensor for name, tensor in found.items() if not name.startswith("1.bias")})
        engine.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload": "optimizer"}, "training.offload: ddp keeps everything on its device"),
        ({"mode": "zero1", "offload": "parameters"}, "training.offload: only zero3 divides the weights, zero1 can"),
        ({"mode": "zero2", "offload": "parameters"}, "training.offload: only zero3 divides the weights, zero2 can"),
    ],
)
def test_what_a_mode_cannot_offload_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_mode(TrainingConfig(**settings))


DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("settings", "told", "mode", "offload"),
    [
        ({}, {}, "zero2", "none"),
        ({}, {"DEEPSPEED_ZERO_STAGE": "1"}, "zero1", "none"),
        ({"mode": "zero3"}, {"DEEPSPEED_ZERO_STAGE": "3"}, "zero3", "none"),
        ({}, {"DEEPSPEED_ZERO_STAGE": "3", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "zero3", "optimizer"),
        (
            {},
            {"DEEPSPEED_ZERO_STAGE": "3", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", "DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "zero3",
            "parameters",
        ),
        ({"max_gradient_norm": 1.0}, {"GRADIENT_CLIPPING": "1.0", "GRADIENT_ACCUMULATION_STEPS": "1"}, "zero2", "none"),
        ({"mode": "zero2", "offload": "optimizer"}, {"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "zero2", "optimizer"),
    ],
)
def test_the_launchers_deepspeed_switches_choose_the_mode(settings: dict[str, Any], told: dict[str, str], mode: str, offload: str) -> None:
    environment = DEEPSPEED | {f"ACCELERATE_{name}": value for name, value in told.items()}
    found = with_launcher_mode(TrainingConfig(**settings), environment)
    assert (found.mode, found.offload) == (mode, offload)
    assert replace(found, mode="ddp", offload="none") == replace(TrainingConfig(**settings), mode="ddp", offload="none")


@pytest.mark.parametrize(
    ("settings", "told", "message"),
    [
        ({"mode": "zero3"}, {"DEEPSPEED_ZERO_STAGE": "2"}, "has zero_stage 2, the configuration zero3.*--training.mode zero2"),
        ({}, {"DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage 0, which is not 1, 2 or 3.*--training.mode ddp"),
        ({}, {"GRADIENT_CLIPPING": "1.0"}, "training.max_gradient_norm: .*gradient_clipping 1.0.*--training.max_gradient_norm 1.0"),
        ({"max_gradient_norm": 0.5}, {"GRADIENT_CLIPPING": "1.0"}, "training.max_gradient_norm: .*the configuration 0.5"),
        ({}, {"GRADIENT_ACCUMULATION_STEPS": "4"}, "training.micro_batch: .*gradient_accumulation_steps 4"),
        ({}, {"MIXED_PRECISION": "bf16"}, "training.precision: .*mixed_precision bf16.*--training.precision bf16"),
        ({}, {"MIXED_PRECISION": "fp16"}, "training.precision: .*mixed_precision fp16"),
        ({}, {"DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file, which is not read.*--training.mode"),
        ({}, {"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "training.offload: .*nvme"),
        ({}, {"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "training.offload: only zero3"),
        ({"offload": "optimizer"}, {}, "training.offload: the launcher has none, the configuration optimizer"),
        ({}, {"DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend"),
        ({}, {"USE_FSDP": "true"}, "the launcher uses FSDP.*--training.mode"),
        ({}, {"USE_MEGATRON_LM": "true"}, "the launcher uses Megatron-LM"),
        ({}, {"USE_PARALLELISM_CONFIG": "true"}, "the launcher uses a parallelism configuration"),
    ],
)
def test_what_the_launcher_was_told_otherwise_is_refused_by_name(settings: dict[str, Any], told: dict[str, str], message: str) -> None:
    environment = DEEPSPEED | {f"ACCELERATE_{name}": value for name, value in told.items()}
    with pytest.raises(ConfigError, match=message):
        with_launcher_mode(TrainingConfig(**settings), environment)


def test_a_launcher_that_was_told_nothing_changes_nothing() -> None:
    for mode in ("ddp", "zero2"):
        training = TrainingConfig(mode=mode)  # type: ignore[arg-type]
        assert with_launcher_mode(training, {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_MIXED_PRECISION": "no"}) == training


def test_without_deepspeed_the_mode_is_refused_and_ddp_never_imports_it(tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("raise ImportError('not here')")
    program = (
        "import sys\n"
        "from pipeline.config import TrainingConfig\n"
        "from pipeline.training.ranks.world import join\n"
        "from pipeline.training.resume import build_engines\n"
        "from tests.pipeline.training.engine.test_zero import ADAM, Rule\n"
        "training = TrainingConfig(mode=sys.argv[1])\n"
        "with join(training) as world:\n"
        "    build_engines(Rule(ADAM), None, world, training)\n"
        "assert 'deepspeed' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for mode in ("ddp", "zero1"):
        command = [sys.executable, "-c", program, mode]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if mode == "ddp":
            assert done.returncode == 0, done.stderr
        else:
            assert "training.mode: zero1 needs DeepSpeed" in done.stderr
            assert r"pip install context-encoders[deepspeed]" in done.stderr
