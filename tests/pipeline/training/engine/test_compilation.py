"""Compiled networks train as those that are not, keep the names of their weights, and say where they can't be compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline import recipes
from pipeline.config import TrainingConfig, check_mode, parse
from pipeline.mapping import ConfigError
from pipeline.training.engine import compilation
from pipeline.training.engine.compilation import check_compiler, compile_network, uncompiled
from pipeline.training.loop import pretrain
from pipeline.training.ranks.launcher import with_launcher_mode
from pipeline.training.supervision.interruption import Interruption
from tests.pipeline.training.test_loop import run_settings

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that traces and differentiates as the real one does, and then runs torch's own kernels: seconds instead of minutes."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def weights(run: Path) -> list[str]:
    names = list[str]()
    for file in sorted(max((run / "checkpoints").glob("step_*")).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:  # type: ignore[no-untyped-call]
            names += [f"{file.name}: {name}" for name in tensors.keys()]  # noqa: SIM118 - no mapping
    return names


def losses(run: Path) -> list[Any]:
    return [json.loads(line)["losses"] for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_compiled_run_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two turns, micro-batches, pictures and a resume; torch's own kernels are behind both, so that even the bits are the same."""
    more = ("--method.batch_norm_group", "2", "--training.micro_batch", "2", "--training.log_every", "1", "--evaluation.every", "0")
    settings = run_settings(tmp_path, 3, *more)

    def train(name: str, compiled: str, steps: int) -> str:
        more = ["--run", str(tmp_path / name), "--training.compile", compiled, "--training.steps", str(steps)]
        assert pretrain(parse(recipes.SETTINGS, [*settings, *more]), Interruption()).finished
        return "".join(capsys.readouterr())

    assert "networks are compiled" not in train("off", "off", 3)
    assert "networks are compiled (default): the first step takes longer\n" in train("on", "default", 2)
    assert "changed since the checkpoint: training.compile: default -> off\n" in train("on", "off", 3)
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert weights(tmp_path / "on") == weights(tmp_path / "off")


@pytest.mark.usefixtures("quick")
def test_evaluation_runs_as_it_is_written_and_each_shape_is_compiled_by_itself() -> None:
    torch._dynamo.reset()
    traced = list[tuple[bool, bool]]()

    class Seen(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            traced.append((torch.compiler.is_compiling(), isinstance(values.shape[0], int)))
            return super().forward(values)

    network = Seen(2, 2)
    compile_network(network, TrainingConfig(compile="default"))
    for count in (2, 3, 4):
        network(torch.zeros(count, 2))
    assert traced == [(True, True)] * 3
    with uncompiled([network]):
        network(torch.zeros(5, 2))
    assert traced[3:] == [(False, True)]
    assert list(network.state_dict()) == ["weight", "bias"]


def test_a_compiler_that_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(ConfigError, match=r"^training\.compile: torch\.compile does not work here .*--training\.compile off$") as caught:
        check_compiler(TrainingConfig(compile="default"), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("quick")
def test_graphs_that_only_a_gpu_captures_are_left_out_and_said() -> None:
    assert check_compiler(TrainingConfig(), CPU) == ""
    said = check_compiler(TrainingConfig(compile="reduce-overhead"), CPU)
    assert said == "networks are compiled (reduce-overhead) without CUDA graphs, which only a GPU captures: the first step takes longer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": "default", "mode": "zero2"}, "training.compile: DeepSpeed .* zero2 .*--training.compile off or --training.mode ddp"),
        ({"compile": "max-autotune"}, "training.compile: max-autotune .*--training.deterministic False"),
    ],
)
def test_what_can_not_be_compiled_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_mode(TrainingConfig(**settings))


def test_a_launcher_that_would_compile_too_is_refused() -> None:
    compiled, environment = TrainingConfig(compile="default"), {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    with pytest.raises(ConfigError, match=r"^training\.compile: the launcher has a dynamo_backend"):
        with_launcher_mode(compiled, environment)
    assert with_launcher_mode(compiled, {"ACCELERATE_DYNAMO_BACKEND": "no"}) == compiled
