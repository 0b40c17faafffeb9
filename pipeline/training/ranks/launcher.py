"""Reconciles the options given to `accelerate launch` (DeepSpeed, precision, ...) with the run's configuration, and refuses contradictions.

The configuration decides how a run trains. The launcher's DeepSpeed options may choose the mode where the configuration leaves the mode at
its default; all its other options have to agree with the configuration. An option that would be ignored is refused by name.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.config import TrainingConfig, check_mode
from pipeline.mapping import ConfigError, from_mapping

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_FIRST_PROCESS = 1


def with_launcher_mode(training: TrainingConfig, environment: Mapping[str, str]) -> TrainingConfig:
    """Returns the settings of the loop with the mode that the launcher's options choose, where the settings leave the mode open.

    Args:
        training: settings of the loop in the configuration.
        environment: environment variables that the launcher made for this rank.

    Raises:
        ConfigError: the launcher has an option that the run would not follow; the message names the setting to use.
    """
    for variable, name in _UNSUPPORTED.items():
        if _on(environment, variable):
            raise ConfigError(
                f"training.mode: the launcher uses {name}, which this program does not. Start with a file of "
                "launch/accelerate and set --training.mode to ddp, zero1, zero2 or zero3"
            )
    if _on(environment, _DEEPSPEED):
        training = _with_deepspeed(training, environment)
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        if training.mode != "ddp":
            raise ConfigError(f"training.mode: the launcher has a dynamo_backend, which {training.mode} does not use. Leave it at no")
        if training.compile != "off":
            raise ConfigError("training.compile: the launcher has a dynamo_backend, which would compile a second time. Leave it at no")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", training.precision):
        raise ConfigError(
            f"training.precision: the launcher has mixed_precision {precision}, the configuration {training.precision}. "
            f"Set --training.precision {'bf16' if precision == 'bf16' else 'fp32 or bf16'} or leave the launcher's at no"
        )
    return training


def without_plugins(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables to set before accelerate reads them. They switch its DeepSpeed plugin off, because this program sets DeepSpeed
    up itself, and on CPUs the plugin makes every rank believe that it is the only one."""
    return {_DEEPSPEED: "false"} if _on(environment, _DEEPSPEED) else {}


def deaf_first_process(processes: Path = Path("/proc"), launched: bool = True) -> str:
    """Returns a warning where process 1 of a container started this run and does not answer SIGTERM, else an empty text.

    The kernel drops a signal to process 1 that has no handler there, and `docker stop` and Kubernetes signal process 1 alone.

    Args:
        processes: folder of the processes, as Linux has it.
        launched: whether a launcher started this process, so that a shell may have started the launcher.
    """
    starters, process = list[int](), os.getpid()
    with suppress(OSError, ValueError, KeyError):
        for _ in range(2 if launched else 1):
            process = int(_status(processes, process)["PPid"])
            starters.append(process)
            if process == _FIRST_PROCESS:
                break
        first = _status(processes, _FIRST_PROCESS)
        answered = int(first["SigCgt"], 16) | int(first["SigBlk"], 16)
        if _FIRST_PROCESS in starters and not answered >> (signal.SIGTERM - 1) & 1:
            return (
                f"warning: process 1 of this container ({first['Name']}) does not answer SIGTERM, so docker stop or Kubernetes would kill "
                "this run without a checkpoint. Let the container's command be python launch/pretrain.py, or start it with an init "
                "(docker run --init): docs/launch.md"
            )
    return ""


def _status(processes: Path, process: int) -> dict[str, str]:
    lines = (processes / str(process) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _with_deepspeed(training: TrainingConfig, environment: Mapping[str, str]) -> TrainingConfig:
    def option(name: str, default: str) -> str:
        value = environment.get(f"ACCELERATE_{name}", "").lower()
        return default if value in ("", "auto") else value

    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() not in ("", "none"):
        raise ConfigError(
            "training.mode: the launcher has a deepspeed_config_file, which is not read. Leave it out and set --training.mode, "
            "--training.offload, --training.micro_batch, --training.max_gradient_norm and --training.precision"
        )
    stage = option("DEEPSPEED_ZERO_STAGE", "2")  # accelerate's default
    if stage not in ("1", "2", "3"):
        raise ConfigError(
            f"training.mode: the launcher has DeepSpeed with zero_stage {stage}, which is not 1, 2 or 3. Without ZeRO start with "
            "launch/accelerate/node.yaml and --training.mode ddp"
        )
    if training.mode not in ("ddp", f"zero{stage}"):
        raise ConfigError(
            f"training.mode: the launcher has zero_stage {stage}, the configuration {training.mode}. "
            f"Set --training.mode zero{stage} or another zero_stage"
        )
    accumulation = option("GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise ConfigError(
            f"training.micro_batch: the launcher has gradient_accumulation_steps {accumulation}. Their number follows from "
            "--training.global_batch, --training.micro_batch and the ranks: leave the launcher's at 1"
        )
    clipping = option("GRADIENT_CLIPPING", "none")
    if clipping != "none" and float(clipping) != training.max_gradient_norm:
        raise ConfigError(
            f"training.max_gradient_norm: the launcher has gradient_clipping {clipping}, the configuration "
            f"{training.max_gradient_norm}. Set --training.max_gradient_norm {clipping} or leave the launcher's out"
        )
    devices = option("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"), option("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    if not {*devices} <= {"none", "cpu"}:
        raise ConfigError(f"training.offload: the launcher has offload to {' and '.join(devices)}; only cpu is possible")
    offload = "parameters" if devices[1] == "cpu" else "optimizer" if devices[0] == "cpu" else "none"
    if training.offload not in ("none", offload):
        raise ConfigError(
            f"training.offload: the launcher has {offload}, the configuration {training.offload}. "
            f"Set --training.offload {offload} or the launcher's offload_optimizer_device and offload_param_device"
        )
    chosen = from_mapping(TrainingConfig, {**dataclasses.asdict(training), "mode": f"zero{stage}", "offload": offload}, "training")
    check_mode(chosen)
    return chosen


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")
