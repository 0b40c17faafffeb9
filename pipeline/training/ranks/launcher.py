"""What `accelerate launch` was told beside how many ranks to start, brought into one with the run's configuration.

The configuration decides how a run trains. A launcher's DeepSpeed switches may choose the mode where the configuration leaves it at its
default; whatever else they say has to agree with it. A switch that would be ignored is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pipeline.config import TrainingConfig, check_mode
from pipeline.mapping import ConfigError, from_mapping

_OTHERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"


def with_launcher_mode(training: TrainingConfig, environment: Mapping[str, str]) -> TrainingConfig:
    """The settings of the loop, with the mode that the launcher chose where they leave it open.

    Args:
        training: of the configuration.
        environment: that the launcher made for this rank.

    Raises:
        ConfigError: the launcher was told something that the run would not do; names the setting to use.
    """
    for variable, name in _OTHERS.items():
        if _on(environment, variable):
            raise ConfigError(
                f"training.mode: the launcher was told to use {name}, which this program does not. Start with a file of launch/accelerate "
                "and set --training.mode to ddp, zero1, zero2 or zero3"
            )
    if _on(environment, _DEEPSPEED):
        training = _with_deepspeed(training, environment)
    if training.mode != "ddp" and environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        raise ConfigError(f"training.mode: the launcher was told a dynamo_backend, which {training.mode} does not use. Leave it at no")
    told = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", training.precision):
        raise ConfigError(
            f"training.precision: the launcher was told mixed_precision {told}, the configuration {training.precision}. "
            f"Set --training.precision {'bf16' if told == 'bf16' else 'fp32 or bf16'} or leave the launcher's at no"
        )
    return training


def without_plugins(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set before accelerate looks at the environment itself: DeepSpeed is this program's own affair, and on processors accelerate's
    plugin takes every rank for the only one."""
    return {_DEEPSPEED: "false"} if _on(environment, _DEEPSPEED) else {}


def _with_deepspeed(training: TrainingConfig, environment: Mapping[str, str]) -> TrainingConfig:
    def told(name: str, default: str) -> str:
        value = environment.get(f"ACCELERATE_{name}", "").lower()
        return default if value in ("", "auto") else value

    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() not in ("", "none"):
        raise ConfigError(
            "training.mode: the launcher was told a deepspeed_config_file, which is not read. Leave it out and set --training.mode, "
            "--training.offload, --training.micro_batch, --training.max_gradient_norm and --training.precision"
        )
    stage = told("DEEPSPEED_ZERO_STAGE", "2")  # what accelerate takes where nothing is said
    if stage not in ("1", "2", "3"):
        raise ConfigError(
            f"training.mode: the launcher was told DeepSpeed with zero_stage {stage}, which is not 1, 2 or 3. Without ZeRO start with "
            "launch/accelerate/node.yaml and --training.mode ddp"
        )
    if training.mode not in ("ddp", f"zero{stage}"):
        raise ConfigError(
            f"training.mode: the launcher was told zero_stage {stage}, the configuration {training.mode}. "
            f"Set --training.mode zero{stage} or another zero_stage"
        )
    accumulation = told("GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise ConfigError(
            f"training.micro_batch: the launcher was told gradient_accumulation_steps {accumulation}. How many there are follows from "
            "--training.global_batch, --training.micro_batch and the ranks: leave the launcher's at 1"
        )
    clipping = told("GRADIENT_CLIPPING", "none")
    if clipping != "none" and float(clipping) != training.max_gradient_norm:
        raise ConfigError(
            f"training.max_gradient_norm: the launcher was told gradient_clipping {clipping}, the configuration "
            f"{training.max_gradient_norm}. Set --training.max_gradient_norm {clipping} or leave the launcher's out"
        )
    devices = told("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"), told("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    if not {*devices} <= {"none", "cpu"}:
        raise ConfigError(f"training.offload: the launcher was told to offload to {' and '.join(devices)}; only to cpu is possible")
    offload = "parameters" if devices[1] == "cpu" else "optimizer" if devices[0] == "cpu" else "none"
    if training.offload not in ("none", offload):
        raise ConfigError(
            f"training.offload: the launcher was told {offload}, the configuration {training.offload}. "
            f"Set --training.offload {offload} or the launcher's offload_optimizer_device and offload_param_device"
        )
    chosen = from_mapping(TrainingConfig, {**dataclasses.asdict(training), "mode": f"zero{stage}", "offload": offload}, "training")
    check_mode(chosen)
    return chosen


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")
