"""The ranks of a run, their devices, and the collectives between them.

`accelerate launch` starts the ranks, and `join` joins them or refuses to: two processes that each believed to be the only rank would
silently train on the wrong batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]

from pipeline.config import TrainingConfig
from pipeline.training.ranks import launcher, rendezvous
from pipeline.training.supervision.watchdog import Watchdog
from shards.errors import ExplainedError

T = TypeVar("T")


class LaunchError(ExplainedError):
    """The processes that the launcher started do not form the run that it announced."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run.

    Attributes:
        rank: number of this process, 0 to size - 1.
        size: processes of the run.
        local_rank: number of this process among those of its node.
        local_size: processes on this node.
        device: device that this rank computes on.
        accelerator: wraps networks for many ranks.
        timeout: longest wait in a collective of the ranks.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    accelerator: Accelerator
    timeout: timedelta

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes the run folder."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Moves a network to the device and, with several ranks, averages its gradients over them."""
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers, which accelerate still calls by its old name
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def start_sum(self, values: Tensor) -> Any:
        """Starts to sum a CPU tensor over the ranks, in place and beside the computation; `finish` waits for the sum."""
        return dist.all_reduce(values, async_op=True) if self.size > 1 else None

    @staticmethod
    def finish(work: Any) -> None:
        """Waits for the sum that `start_sum` started."""
        if work is not None:
            work.wait()

    def broadcast_tensors(self, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """Broadcasts the CPU tensors of rank 0; the other ranks pass None."""
        if self.size == 1:
            return tensors or {}
        kinds = self.broadcast([(name, tensor.dtype, tensor.shape) for name, tensor in (tensors or {}).items()])
        found = dict(tensors) if self.is_first and tensors else {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in kinds}
        for name, _, _ in kinds:
            dist.broadcast(found[name], src=0)
        return found

    def broadcast(self, value: Any) -> Any:
        """Broadcasts a small plain value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def on_first(self, action: Callable[[], T]) -> T | None:
        """Runs an action on rank 0 alone. If the action fails, every rank ends: rank 0 with the error, the others silently.

        Returns:
            The action's result on rank 0, None on the other ranks.
        """
        result: T | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = action()
            except Exception as raised:
                error = raised
        if self.broadcast(error is not None):
            raise error or SystemExit(1)
        return result


@contextmanager
def join(training: TrainingConfig, watchdog: Watchdog | None = None) -> Iterator[World]:
    """Joins the ranks that the launcher started, and leaves the process group at the end, however the run ends.

    Args:
        training: settings of the loop.
        watchdog: notes which ranks the start-up waits for.

    Raises:
        LaunchError: WORLD_SIZE of the environment and of the process group differ.
        RanksMissing: not every rank joined within training.timeout_minutes.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    torch.set_num_threads(training.threads)
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every buffer is written whole
    torch.backends.cudnn.benchmark = not training.deterministic
    if not cpu:
        torch.cuda.set_device(local_rank)
    start = timedelta(minutes=training.timeout_minutes)
    timeout = timedelta(seconds=watchdog.patience.collective) if watchdog else start
    if (size > 1 or training.mode != "ddp") and not dist.is_initialized():  # ZeRO needs a group even for one rank
        _make_group(rank, size, cpu, start, timeout, watchdog)
    try:
        if cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.update(launcher.without_plugins(os.environ))
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # the step sets the precision itself
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        if accelerator.num_processes != size or (dist.is_initialized() and dist.get_world_size() != size):
            raise LaunchError(
                f"the launcher set WORLD_SIZE={size}, but the processes that found each other are {accelerator.num_processes}: "
                "start with accelerate launch --config_file launch/accelerate/cpu.yaml, or see docs/launch.md"
            )
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield World(rank, size, local_rank, local_size, accelerator.device, accelerator, timeout)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _make_group(rank: int, size: int, cpu: bool, start: timedelta, timeout: timedelta, watchdog: Watchdog | None) -> None:
    """Makes the process group before accelerate does, so that a restart gets a store without the keys of the last attempt."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt-{attempt}", _store(rank, size, start, watchdog) if size > 1 else HashStore())
    if size > 1:
        rendezvous.meet(store, rank, size, start, watchdog.note_startup if watchdog else None)
    dist.init_process_group(
        "gloo" if cpu else "cpu:gloo,cuda:nccl",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
    )


def _store(rank: int, size: int, timeout: timedelta, watchdog: Watchdog | None) -> Store:
    agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        port = int(os.environ["MASTER_PORT"])
        address = os.environ["MASTER_ADDR"]
    except KeyError as error:
        raise LaunchError(f"WORLD_SIZE is {size} but {error.args[0]} is not set: start the ranks with accelerate launch") from None
    is_master = rank == 0 and not agent_has_store
    return rendezvous.connect(address, port, size, is_master, timeout, watchdog.note_startup if watchdog else None)
