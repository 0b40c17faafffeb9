"""ZeRO's modes in their differences from DDP: state in and out, offload, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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
from tests.pipeline.training.test_step import make_engine

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


def test_a_closed_engine_leaves_torchs_linear_and_the_environment_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 3 replaces torch.nn.functional.linear for the whole process, so a network that is built later would run DeepSpeed's."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    linear, training = functional.linear, TrainingConfig(mode="zero3")
    with join(training) as world:
        engine = make_engine(Rule(ADAM).players[0], world, training)
        assert functional.linear is not linear, "stage 3 has not replaced it, so that this test proves nothing"
        assert "LOCAL_RANK" in os.environ
        engine.close()
    assert functional.linear is linear
    assert "LOCAL_RANK" not in os.environ


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


@pytest.mark.slow
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
            assert r"pip install -e '.[deepspeed]'" in done.stderr
