"""Networks compiled by torch.compile, if `training.compile` asks for it: in place, so that weights keep their names in checkpoints.

A compiled network is called as before, inside DDP too, where torch cuts its graph at the buckets of gradients, so that their exchange
begins during the backward pass. Every shape is compiled by itself (no dynamic shapes), because the kernels, and with them the last bits,
would otherwise depend on the shapes that came before. Evaluation is not compiled: its batches have many shapes and come rarely.

Where a compiler is missing, the run is refused before its first step, because it was asked to compile. Where only the capture of CUDA
graphs is impossible, the networks are compiled without, and the run says so: the same settings serve machines with and without GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.mapping import ConfigError

BACKEND = "inductor"
"""Compiler that torch.compile uses."""
_GRAPHS = ("reduce-overhead", "max-autotune")  # values of training.compile that capture CUDA graphs
_VARIANTS = 64  # of a network: shapes and turns; past torch's own limit of 8 it would stop to compile, with a warning alone
_compiled: WeakSet[nn.Module] = WeakSet()


def check_compiler(training: TrainingConfig, device: torch.device) -> str:
    """Compiles one addition, to find a missing compiler before the networks are built.

    Args:
        training: settings of the loop.
        device: device of the rank.

    Returns:
        A line for the console; empty if nothing is compiled.

    Raises:
        ConfigError: torch.compile does not work on this machine; with the first line of its reason.
    """
    if training.compile == "off":
        return ""
    try:
        _compiler(training)(_add_one)(torch.zeros(2, device=device))
    except Exception as error:  # of any type, by what is missing
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"training.compile: torch.compile does not work here ({type(error).__name__}: {reason}). It needs a C++ compiler for CPUs, and "
            "Triton and a C compiler for GPUs: install them, or set --training.compile off"
        ) from error
    without = " without CUDA graphs, which only a GPU captures" if training.compile in _GRAPHS and device.type != "cuda" else ""
    return f"networks are compiled ({training.compile}){without}: the first step takes longer"


def compile_network(network: nn.Module, training: TrainingConfig) -> None:
    """Has a network compiled at its next calls, in place, if `training.compile` asks for it."""
    if training.compile == "off":
        return
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    network.compile(**_arguments(training))
    _compiled.add(network)


def uncompiled(networks: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Returns a context in which compiled networks run as they were written; one without effect if none of the networks is compiled."""
    return torch.compiler.set_stance("force_eager") if any(network in _compiled for network in networks) else nullcontext()


def begin_step(training: TrainingConfig, device: torch.device) -> None:
    """Lets CUDA graphs write over the results of the step before; called once a step."""
    if training.compile in _GRAPHS and device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _add_one(values: Tensor) -> Tensor:
    return values + 1


def _compiler(training: TrainingConfig) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    return torch.compile(**_arguments(training))


def _arguments(training: TrainingConfig) -> dict[str, Any]:
    if BACKEND != "inductor":  # others take none of its options
        return {"backend": BACKEND, "dynamic": False}
    # a kernel that is chosen by its time may be another one after a restart, with other last bits
    options = {**torch._inductor.list_mode_options(training.compile), "deterministic": training.deterministic}
    return {"backend": BACKEND, "dynamic": False, "options": options}
