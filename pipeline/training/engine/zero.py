"""DeepSpeed's ZeRO: the ranks divide a player's optimiser (stage 1), also its gradients (stage 2), also its weights (stage 3).

DeepSpeed divides and communicates, and nothing else: clipping, accumulation, precision, scaling and the optimiser are those of DDP, so that
a run is the same in every mode. DeepSpeed's own checkpoints are not used, because they fit one number of ranks and one stage: state goes in
and out as full tensors by parameter name.

DeepSpeed is imported when an engine is built for one of these modes, never before, because it is an optional package and takes seconds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import TrainingConfig
from pipeline.mapping import ConfigError
from pipeline.model.batch_norm import spans_ranks
from pipeline.recipes.player import Player
from pipeline.training.engine import zero_waits
from pipeline.training.engine.engine import Engine, Ranks
from pipeline.training.engine.optimiser_state import OptimiserMismatch, by_parameter, make_optimiser

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
"""ZeRO stage by `training.mode`."""
_BUCKET = 50_000_000  # elements sent at once: 200 MB; DeepSpeed's default reserves 2 GB, for networks of 0.3 GB


class ShardedEngine(Engine):
    """ZeRO: the ranks divide the state of a player.

    Args:
        player: player in training mode, with the weights to begin with, whole on every rank.
        world: ranks of the run; their process group exists even if there is one rank.
        training: settings of mode, offload, precision and clipping.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """

    def __init__(self, player: Player, world: Ranks, training: TrainingConfig) -> None:
        self._deepspeed = _prepare(world, training)
        self.player = player
        self._is_first = world.is_first
        self._stage = STAGES[training.mode]
        # stage 2 adds gradients up with every backward, stage 3 gathers weights in every forward
        self.in_lockstep = self._stage > 1 or spans_ranks(player.network)
        self._shapes = {name: parameter.shape for name, parameter in player.network.named_parameters()}
        network = player.network.to(world.device)
        on_gpu = world.device.type == "cuda"
        self.optimiser = make_optimiser(player.optimiser, list(network.parameters()), fused=on_gpu and training.offload == "none")
        self.bare = _AtPrecision(network, training.precision == "bf16")
        self._set_local_rank = "LOCAL_RANK" not in os.environ  # DeepSpeed reads it; without a launcher it is not set
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
        self._linear = functional.linear  # stage 3 replaces it for the whole process
        self._zero_engine, *_ = self._deepspeed.initialize(
            model=self.bare, optimizer=self.optimiser, config=_settings(training, on_gpu), dist_init_required=False
        )
        self.wrapped = self._zero_engine
        self._zero = self._zero_engine.optimizer

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        self._zero_engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._zero_engine.backward(loss, scale_wrt_gas=False)

    def update(self, rate: float) -> Tensor:
        """See `Engine`. DeepSpeed takes the norm over all ranks, clips by it, and changes nothing if it is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.player.optimiser.learning_rate * rate
        self._zero_engine.step()
        return torch.as_tensor(self._zero_engine.get_global_grad_norm(), dtype=torch.float32)

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        by_name = by_parameter(self._shapes, self.optimiser, tensors)
        if not by_name:
            return
        steps = {float(entries["step"]) for entries in by_name.values() if "step" in entries}
        if len(steps) > 1 or by_name.keys() != self._shapes.keys():
            raise OptimiserMismatch(
                f"the optimiser of {self.player.name} has updated some parameters more often than others, which ZeRO can't represent: "
                "continue with --training.mode ddp"
            )
        entries = [entry for entry in next(iter(by_name.values())) if entry != "step"]
        for flat in self._flat_weights():
            device = flat.device if self.optimiser.defaults.get("fused") else "cpu"
            counted = {"step": torch.tensor(max(steps), dtype=torch.float32, device=device)} if steps else {}
            self.optimiser.state[flat] = counted | {entry: torch.zeros_like(flat) for entry in entries}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()  # links parameters to their part of the state; else done after the first step
        self.network.requires_grad_(True)
        for name, parameter in self.network.named_parameters():
            for entry in entries:
                self._put(parameter, by_name[name][entry], entry)

    def full_state(self) -> dict[str, Mapping[str, Tensor]]:
        utils, name = self._deepspeed.utils, self.player.name
        self.network.requires_grad_(True)  # DeepSpeed returns nothing for a frozen parameter
        parameters = dict(self.network.named_parameters())
        weights, state = dict[str, Tensor](), dict[str, Tensor]()
        for key, value in self.network.state_dict().items():
            gathered = self._stage == 3 and key in parameters
            self._keep(weights, key, utils.safe_get_full_fp32_param(parameters[key]) if gathered else value)
        entries = self.optimiser.state.get(self._flat_weights()[0], {})
        for key, parameter in parameters.items():
            for entry, value in entries.items():
                whole = value if entry == "step" else utils.safe_get_full_optimizer_state(parameter, entry)
                self._keep(state, f"{key}/{entry}", whole)
        return {name: weights, f"{name}.optimiser": state} if self._is_first else {}

    def time_waits(self, collective: Callable[[], AbstractContextManager[None]]) -> None:
        zero_waits.time_waits(self._deepspeed.comm.comm, collective)

    def close(self) -> None:
        zero_waits.leave_waits(self._deepspeed.comm.comm)
        self._zero_engine.destroy()
        functional.linear = self._linear
        self._deepspeed.utils.groups._WORLD_GROUP = None  # that group ends with the run's
        if self._set_local_rank:
            del os.environ["LOCAL_RANK"]

    def _keep(self, found: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        """Copies a tensor off the device at once, on rank 0, so that no rank ever holds more than one gathered tensor there."""
        if self._is_first:
            found[name] = tensor.detach().to("cpu")

    def _flat_weights(self) -> list[Tensor]:
        """Returns this rank's part of the float32 weights, laid end to end: the tensors that the optimiser updates."""
        flat: list[Tensor] = self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        return flat

    def _put(self, parameter: nn.Parameter, whole: Tensor, entry: str) -> None:
        """Fills this rank's part of one entry of the optimiser's state."""
        if self._stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, whole, entry)
            return
        own = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = functional.pad(whole.flatten(), (0, own * dist.get_world_size() - whole.numel()))
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, padded.narrow(0, own * dist.get_rank(), own), entry)


class _AtPrecision(nn.Module):
    """Runs the network at the step's precision. Autocast begins inside, because DeepSpeed switches it off around its engine's forward."""

    def __init__(self, network: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self.bf16 = bf16

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(*inputs, **named)


def _settings(training: TrainingConfig, on_gpu: bool) -> dict[str, Any]:
    """Makes DeepSpeed's configuration. It sets every value whose default would change the training (DeepSpeed clips at 1.0)."""
    to_cpu = {"device": "cpu", "pin_memory": on_gpu}
    zero: dict[str, Any] = {"stage": STAGES[training.mode], "reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET}
    if training.offload != "none":
        zero["offload_optimizer"] = to_cpu
    if training.offload == "parameters":
        zero["offload_param"] = to_cpu
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, but without effect: losses are already scaled
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_gradient_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "zero_optimization": zero,
        "timers": {"throughput": {"enabled": False}},  # would wait for the device in every step
    }


def _prepare(world: Ranks, training: TrainingConfig) -> ModuleType:
    """Imports DeepSpeed and gives it the run's process group.

    Raises:
        ConfigError: DeepSpeed is not installed, or can't be imported.
    """
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at import
    try:
        import deepspeed  # noqa: PLC0415
        from deepspeed.utils import groups  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"training.mode: {training.mode} needs DeepSpeed, which can't be imported here ({error}): "
            "pip install -e '.[deepspeed]', or set --training.mode ddp"
        ) from error
    if world.device.type == "cpu":
        # Otherwise DeepSpeed compiles a collective for CPUs, a minute of g++ for each home folder, for calls that training never makes
        deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed calls collectives by names that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning, module="torch.distributed")
    if groups._WORLD_GROUP is None:  # the group that DeepSpeed would make has torch's default timeout
        groups._WORLD_GROUP = dist.new_group(timeout=world.timeout)
    module: ModuleType = deepspeed
    return module
