"""The environment that a process inherits from the shell, image or batch system: variables of other programs that libraries here read, too.

Imports the standard library and errors alone, so that a program can call it before it imports those libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from shards.errors import ExplainedError

_PROMETHEUS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
_OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_START = "Start the ranks with accelerate launch (docs/launch.md), or remove what another program left"


class InheritedError(ExplainedError):
    """A variable of the environment says that this process is one of several, and others say that it is not."""


def leave_out(environment: MutableMapping[str, str]) -> None:
    """Removes variables that are meant for another program, and those of a launch that are set to nothing.

    With PROMETHEUS_MULTIPROC_DIR prometheus_client would keep every metric of this program in files of a web service.

    Args:
        environment: environment of this process.
    """
    for name in (*_PROMETHEUS, *(name for name in _OF_A_LAUNCH if not environment.get(name))):
        environment.pop(name, None)


def use_huge_pages(environment: MutableMapping[str, str]) -> None:
    """Has torch take large tensors on a CPU from huge pages, unless the user has decided; called before torch makes its first tensor.

    Training takes and returns hundreds of megabytes in every step, and the kernel fills huge pages in a quarter of the time. It has no
    effect where the kernel has none.

    Args:
        environment: environment of this process.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def check_ranks(environment: MutableMapping[str, str]) -> None:
    """Refuses variables of a launch that contradict each other, because ranks that count differently would wait for each other or write
    nothing. Where nothing says that there are several ranks, removes the variables from which accelerate would conclude that there are.

    Args:
        environment: environment of this process.

    Raises:
        InheritedError: the message names the variable.
    """
    rank, size = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    local_rank = _number(environment, "LOCAL_RANK", 0)
    if not 0 <= rank < size:
        given = f"WORLD_SIZE={size}" if "WORLD_SIZE" in environment else "WORLD_SIZE is not set"
        raise InheritedError(f"RANK={rank}, but {given}. {_START}: unset RANK")
    if size > 1:
        return
    if local_rank > 0:
        raise InheritedError(f"LOCAL_RANK={local_rank}, but there is one rank. {_START}: unset LOCAL_RANK")
    if {"LOCAL_RANK", "MASTER_ADDR"} <= environment.keys():
        return  # a launcher started this rank, and accelerate reads these first
    environment.pop("LOCAL_RANK", None)
    for name in _MPI_SIZES:
        if (count := _number(environment, name, 1)) > 1:
            raise InheritedError(f"{name}={count}: this program does not start under MPI. {_START}: unset {name}")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError:
        raise InheritedError(f"{name}={environment[name]}: is no number. {_START}: unset {name}") from None
