"""One frozen tree of settings for a run: read from a YAML file, overridden by dotted arguments of the command line, then never changed.

The meaning, unit, default and bounds of every setting are written here once; `--help` and the errors are made from this text. A wrong key
or value is refused before any rank starts, so that no run trains anything else than it was asked to.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from annotated_types import Ge, Gt, Interval

from monitoring.settings import EndpointError, MonitoringConfig
from monitoring.settings import check as check_monitoring
from pipeline.command_line import name_sources, overridden, read_yaml, take
from pipeline.mapping import ConfigError, check_local, checked, from_mapping, with_places
from pipeline.spelling import nearest
from shards.urls import SHOWN_OPTIONS, redacted, with_literal_dollars

MethodT = TypeVar("MethodT")
_Decay = Annotated[float, Interval(ge=0, lt=1)]
_PLACES = ("run", "*.shards", "*.shapes", "checkpoint.url", "checkpoint.resume", "monitoring.*_file", "monitoring.pushgateway")
"""Settings in which `~` and $VARIABLE are expanded; data.cache is one too, but of each node, and is expanded there."""


@dataclass(frozen=True)
class OptimiserConfig:
    """The rule that turns a player's gradients into steps."""

    kind: Literal["adam", "sgd"] = "adam"
    """Update rule. With adam the weight decay is decoupled from the gradient (AdamW)."""
    learning_rate: Annotated[float, Interval(gt=0, le=1000)] = 1e-4
    """Learning rate at the peak of the schedule."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """Number that adam adds to the denominator."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Momentum; sgd only."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Fraction of a weight that each step subtracts, times the learning rate."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Factor that scales every player's learning rate over the run."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    """Factor after the warm-up: constant; cosine, half a cosine from 1 down to `final_factor`; step, times `step_factor` every `step_every`
    steps."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the factor rises linearly from 0 to 1."""
    final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Factor at the end of the run; cosine only."""
    step_every: Annotated[int, Ge(1)] = 10_000
    """Steps between two drops of the factor; step only."""
    step_factor: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Number that a drop multiplies the factor by; step only."""


@dataclass(frozen=True)
class SourceConfig:
    """One of the data sets that a batch mixes."""

    shards: str = ""
    """URL of the data set, as data.shards."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Weight of the data set in every batch, relative to the weights of the others."""
    storage_options: dict[str, str] = field(default_factory=dict)
    """Options of the data set's store, added to data.storage_options."""


@dataclass(frozen=True)
class DataConfig:
    """Source of the pictures, and their way to the device."""

    shards: str = ""
    """URL of a data set made by `python -m shards build`: a folder, s3://bucket/prefix, or its manifest.json."""
    storage_options: dict[str, str] = field(default_factory=dict)
    """Options of the store beyond its own environment and profiles, as in fsspec. On the command line pairs of words:
    --data.storage_options profile mine anon true."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Several data sets by name instead of data.shards, each with its own shards and weight. The number of samples that a batch takes from
    a data set is the same in every batch; the order of the names is part of the run's identity."""
    crop: Literal["random", "random_resized", "center"] = "random"
    """Crop of a picture: random, at the stored scale (the paper's); random_resized, 8 to 100 % of the area with an aspect of 3/4 to 4/3,
    antialiased; center, for evaluation."""
    flip: bool = True
    """Mirror half of the pictures; ignored with center."""
    lanes: Annotated[int, Ge(1)] = 64
    """Canonical streams of the order; the greatest common divisor of this number and training.global_batch is used. Part of the order's
    identity."""
    shuffle_block: Annotated[int, Ge(1)] = 4096
    """Samples that are shuffled together inside a lane. Part of the order's identity."""
    tail: Literal["drop", "pad"] = "drop"
    """Handling of an epoch's last samples when they fill no batch: drop leaves them out in this epoch, pad fills the batch with the epoch's
    first samples."""
    decoder: Literal["simplejpeg", "nvimgcodec", "nvimgcodec_gpu"] = "simplejpeg"
    """JPEG decoder: simplejpeg decodes the rows that a crop needs; nvimgcodec (the extra `decode`, no GPU needed) decodes only the crop's
    rectangle, which is faster on full-size pictures, but it accepts damaged ones; nvimgcodec_gpu (with nvidia-nvjpeg-cu12) decodes and
    resizes on the GPU of the rank, for nodes whose cores are too few. A run keeps the decoder that it began with."""
    threads: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Decoding threads per rank; 0 divides the cores of the node by its ranks, at most 16."""
    ready_batches: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Batches that a rank prepares ahead of training."""
    requests: Annotated[int, Interval(ge=1, le=10_000)] = 32
    """Concurrent requests per rank to a remote store, for samples that are not in the cache."""
    cache: str = "auto"
    """Folder that caches the shards of a remote store for all ranks of a node; `auto` is a folder in $TMPDIR, `none` caches nothing and
    reads each sample as a byte range. Local shards are read in place."""
    cache_gb: Annotated[float, Interval(ge=0, le=1e9)] = 20.0
    """Capacity of the cache in 10^9 bytes; the least recently used shards are deleted first."""
    retries: Annotated[int, Ge(0)] = 8
    """Retries of a request to the store, with exponential backoff and jitter."""
    stall_seconds: Annotated[float, Interval(gt=0, le=1e6)] = 60.0
    """Longest wait in seconds for the next bytes of a request before the request is retried."""
    max_bad_fraction: Annotated[float, Interval(ge=0, le=1)] = 1e-4
    """Largest fraction of the data set that may be unreadable. Each unreadable sample is replaced, counted, and named in quarantine.jsonl;
    above this fraction the run stops."""
    unavailable: Literal["stop", "substitute"] = "stop"
    """Reaction to a shard that fails after all retries: stop ends the run with the shard's name; substitute counts its samples as
    unreadable and goes on within max_bad_fraction. With substitute, the samples of a batch depend on when the store failed."""
    orientation: Literal["turned", "stored"] = "turned"
    """Handling of pictures that a camera stored on their side or mirrored: turned upright, as their EXIF data say, or as they are stored. A
    run keeps what it began with; runs of versions that turned nothing keep `stored`. `build --resize` has turned its pictures already."""
    max_pixels: Annotated[int, Ge(1)] = 100_000_000
    """Pixels of the largest picture that is decoded; larger ones count as unreadable."""


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop."""

    steps: Annotated[int, Ge(1)] = 100_000
    """Steps of the whole run, over all attempts."""
    global_batch: Annotated[int, Ge(1)] = 256
    """Samples per step over all ranks. This is the batch of the method: it never changes with the number of ranks."""
    micro_batch: Annotated[int, Ge(1)] = 256
    """Most samples that pass through a device at once. Set it to what fits into memory: it does not change the result."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the networks' computation; bf16 keeps weights and losses in float32."""
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    """Order of pictures, maps and weights in memory: channels_last, the values of a pixel side by side, which the kernels of CPUs and GPUs
    want; contiguous, map after map. The result differs by rounding alone. On CPUs and under ZeRO the weights are contiguous in any case."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Compilation of the networks by torch.compile, with ddp: off; default, kernels that do several operations at once; reduce-overhead,
    captured as CUDA graphs as well, for small batches; max-autotune, also with the fastest of several kernels, which needs
    training.deterministic False. The first step takes longer, by minutes on a GPU. The result differs by rounding alone."""
    mode: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """Division of the model over ranks: ddp keeps a whole copy on each rank; DeepSpeed's ZeRO (the extra `deepspeed`) divides the
    optimiser's state (zero1), the gradients as well (zero2), the weights as well (zero3). The mode changes the result by
    rounding alone, and a resumed run may have another one."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """State that ZeRO keeps in the memory of the CPU: none; optimizer, the optimiser's state; parameters, the weights too (zero3 only)."""
    max_gradient_norm: Annotated[float, Ge(0)] = 0.0
    """Largest norm of a player's gradient; longer gradients are scaled down to it. 0 sets no limit."""
    max_nonfinite_steps: Annotated[int, Ge(0)] = 10
    """Steps in a row that may be skipped because a gradient is not finite; after more of them the run stops."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between two lines on the console, for which the losses are read from the device."""
    pictures_every: Annotated[int, Ge(0)] = 1000
    """Steps between two PNG grids in the run folder, of the same held-back pictures where there are any; 0 writes none."""
    pictures: Annotated[int, Ge(1)] = 8
    """Pictures per grid."""
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    """CPU threads of torch per rank. On CPUs the last bits of the result depend on it."""
    timeout_minutes: Annotated[float, Interval(gt=0, le=1e6)] = 10.0
    """Longest wait for another rank to join. watchdog.stall_minutes is derived from it; without the watchdog it is also the time limit of
    every collective."""
    deterministic: bool = True
    """Use only algorithms that give the same bits in every run; false lets cuDNN choose the fastest."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on pictures that are never trained on, while the run goes on. See docs/learning.md."""

    every: Annotated[int, Ge(0)] = 1000
    """Steps between two evaluations; one more is made before the first step and one after the last. 0 evaluates nothing, but pictures
    are held back all the same."""
    held_back: Annotated[float, Interval(ge=0, le=0.5)] = 0.01
    """Fraction of every data set that is held back from training: at least 256 pictures or a tenth, at most 50,000, none of fewer than 80
    pictures. A run keeps the pictures that it began with. Not used with evaluation.shards."""
    pictures: Annotated[int, Interval(ge=1, le=100_000)] = 256
    """Most held-back pictures that are evaluated. Every rank keeps its part of them in memory."""
    shards: str = ""
    """Data set to evaluate on instead, so that nothing is held back: folder or s3://bucket/prefix. Options of the store are
    data.storage_options."""
    judge_after: Annotated[int, Ge(0)] = 1000
    """Steps after which a run is reported that paints no better than one colour a picture or names a class no better than by chance, or
    whose maps die or outputs collapse."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: their store, how often they are saved, which are kept, and how a run resumes."""

    url: str = ""
    """Folder or s3://bucket/prefix of the checkpoints; empty is RUN/checkpoints. Options of the store are data.storage_options."""
    every: Annotated[int, Ge(1)] = 1000
    """Steps between two checkpoints. One more is saved at the end of the run, and on SIGTERM, SIGUSR1, SIGHUP or SIGXCPU."""
    keep_last: Annotated[int, Ge(1)] = 3
    """Number of newest checkpoints that are kept."""
    read_back: bool = True
    """Read a new checkpoint back from the store and compare every byte before an older one is deleted. Training goes on meanwhile."""
    keep_every: Annotated[int, Ge(0)] = 0
    """Interval in steps of the checkpoints that are never deleted, 10000 for steps 10000, 20000, ...; 0 keeps none for good."""
    resume: str = "auto"
    """Checkpoint that the run starts from: auto, the newest of this run that verifies, if it has any; none, refuse to start if this run
    has any; otherwise the folder of another run's checkpoint, used until this run has its own."""
    other_decoder: bool = False
    """Resume although other software decoded the pictures before, which may change the last bit of a pixel."""


@dataclass(frozen=True)
class WatchdogConfig:
    """Limits after which a hanging run is ended, and an unhealthy one is reported. See docs/watchdogs.md."""

    enabled: bool = True
    """End a rank that makes no progress, and write the stacks of its threads to RUN/stacks. Set it to false under a debugger."""
    startup_minutes: Annotated[float, Interval(gt=0, le=1e6)] = 30.0
    """Longest time from the start of a rank to the end of its first step, including joining, loading the checkpoint and the first batch."""
    stall_minutes: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    """Longest wait for a batch, and longest time of the step itself; 0 takes nine tenths of training.timeout_minutes, with a remote store
    at least the time in which a request may be retried (data.retries, data.stall_seconds)."""
    checkpoint_minutes: Annotated[float, Interval(gt=0, le=1e6)] = 30.0
    """Longest time that training may stand still for a checkpoint; at least stall_minutes."""
    grace_seconds: Annotated[float, Interval(ge=0, le=1e6)] = 60.0
    """Extra seconds for a checkpoint that is being written to finish before its hanging rank is ended."""
    starving_share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Fraction of the time that a rank may wait for data before starvation is reported; 1 reports nothing."""
    starving_seconds: Annotated[float, Interval(gt=0, le=1e6)] = 60.0
    """Window in seconds over which the wait for data is averaged."""
    collapse_steps: Annotated[int, Ge(0)] = 500
    """Consecutive steps over which losses are averaged before they are compared with the recipe's thresholds of a collapse; 0 never
    reports one."""


@dataclass(frozen=True)
class Config(Generic[MethodT]):
    """All settings that a run depends on."""

    method: MethodT
    """Settings of the recipe itself."""
    recipe: str = "features"
    """Pretext task: the name of a recipe in pipeline/recipes."""
    run: str = "runs/default"
    """Folder for everything that the run writes, no URL; giving the same folder again continues the run. Here and wherever a setting names
    a file, folder or URL, ~ and $VARIABLE are expanded, and $$ is a literal $."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    """Seed of the order, crops, masks, dropout and initial weights."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


def parse(methods: Mapping[str, type], arguments: Sequence[str], program: str = "launch/pretrain.py", description: str = "") -> Config[Any]:
    """Reads any number of `--config FILE.yaml`, of which later ones come over earlier ones, and dotted overrides into one tree.

    Args:
        methods: frozen dataclasses of the recipes' settings, by the recipes' names.
        arguments: command line without the program.
        program: name of the program, for help.
        description: first lines of the help.

    Raises:
        ConfigError: unknown key in a file or one given twice, wrong type, a value out of bounds, values that contradict each other.
        SystemExit: --help, or an unknown or malformed argument, after it has been explained.
    """
    remaining, files = take(arguments, "--config")
    from_file = read_yaml(files)
    recipe = (take(remaining, "--recipe")[1] or [str(from_file.get("recipe", "features"))])[-1]
    if recipe not in methods:
        raise ConfigError(f"recipe: {recipe!r} is not a recipe{nearest(recipe, methods, listed=True)}")
    method = methods[recipe]
    name_sources(from_file, remaining)
    defaults: Config[Any] = from_mapping(Config, {**from_file, "recipe": recipe}, method=method)
    description = (
        f"{description}\n\nFiles of the same settings come first, a later one over an earlier: --config FILE.yaml. Data sets are mixed by "
        "--data.sources.NAME.shards URL and --data.sources.NAME.weight W, for each NAME"
    )
    values = overridden(types.GenericAlias(Config, (method,)), defaults, remaining, program, description)
    config: Config[Any] = with_places(from_mapping(Config, values, method=method), _PLACES)
    check(config)
    return config


def check(config: Config[Any]) -> None:
    """Refuses values that no run could use: those out of the bounds on their fields, and those that contradict each other.

    Settings of a recipe may have a method `check`, which refuses combinations of their own in the same way, and a property `unit`: the
    samples that ranks and micro-batches must not divide.

    Raises:
        ConfigError: naming the key.
    """
    checked(config)
    if not config.data.cache:
        raise ConfigError("data.cache: give a folder, auto or none")
    if not config.run:
        raise ConfigError("run: give the folder that this run writes into: --run runs/NAME")
    check_local("run", config.run, "Give a folder, --run runs/NAME; its checkpoints may go to a store: --checkpoint.url URL")
    check_local("data.cache", config.data.cache, "Give a folder on a disk of each node, auto or none")
    _check_options("data", config.data.storage_options)
    _check_sources(config.data)
    try:
        check_monitoring(config.monitoring)
    except EndpointError as error:
        raise ConfigError(str(error)) from None
    check_mode(config.training)
    for name, rule in getattr(config.method, "__dict__", {}).items():
        if isinstance(rule, OptimiserConfig) and (lost := rule.learning_rate * rule.weight_decay) >= 1:
            raise ConfigError(f"method.{name}.weight_decay: times the learning rate it is {lost:g}, so a step would take off whole weights")
    if (of_the_recipe := getattr(config.method, "check", None)) is not None:
        of_the_recipe()
    _check_unit(config.training, getattr(config.method, "unit", 1))


def _check_unit(training: TrainingConfig, unit: int) -> None:
    group = f"the batch-norm group of {unit}"
    if training.global_batch % unit:
        raise ConfigError(f"training.global_batch: a global batch of {training.global_batch} is not a multiple of {group}: make it one")
    if training.micro_batch < unit:
        raise ConfigError(f"training.micro_batch: {training.micro_batch} is less than {group}, which must not be divided")


def check_mode(training: TrainingConfig) -> None:
    """Refuses an offload or a compilation that the mode does not support, and one that deterministic training does not.

    Raises:
        ConfigError: naming the key.
    """
    if training.offload != "none" and training.mode == "ddp":
        raise ConfigError("training.offload: ddp keeps everything on its device. Set --training.mode zero1, zero2 or zero3, or none here")
    if training.offload == "parameters" and training.mode != "zero3":
        raise ConfigError(
            f"training.offload: only zero3 divides the weights, {training.mode} can offload the optimizer. "
            "Set --training.mode zero3 or --training.offload optimizer"
        )
    if training.compile != "off" and training.mode != "ddp":
        raise ConfigError(
            f"training.compile: DeepSpeed divides the networks of {training.mode} while they run, which can't be compiled. "
            "Set --training.compile off or --training.mode ddp"
        )
    if training.compile == "max-autotune" and training.deterministic:
        raise ConfigError(
            "training.compile: max-autotune takes the kernels that are fastest in a trial, which may be others after a restart. "
            "Set --training.compile default or reduce-overhead, or --training.deterministic False"
        )


def _check_options(where: str, options: Mapping[str, str]) -> None:
    if name := next((option.partition("=")[0] for option in options if "=" in option), ""):  # names are shown, and this one holds a value
        raise ConfigError(f"{where}.storage_options: give names and values as words of their own: {name} VALUE, not {name}=...")


def _check_sources(data: DataConfig) -> None:
    if bool(data.shards) == bool(data.sources):
        what = "is given beside data.sources: name every data set there" if data.shards else "give the URL of a data set"
        raise ConfigError(f"data.shards: {what}: --data.shards FOLDER or s3://bucket/prefix")
    for name, source in data.sources.items():
        if not re.fullmatch(r"\w+", name):
            raise ConfigError(f"data.sources: {name!r} is no name: letters, digits and _ will do")
        if not source.shards:
            raise ConfigError(f"data.sources.{name}.shards: give the URL of a data set")
        _check_options(f"data.sources.{name}", source.storage_options)


def to_mapping(config: Config[Any]) -> dict[str, Any]:
    """The tree as plain values, for YAML and JSON that `parse` reads back, with the secrets in the store's options and in URLs left out."""
    shown = with_places(config, ("*.shapes",), change=lambda text, _: redacted(text))
    plain: dict[str, Any] = dataclasses.asdict(with_places(shown, _PLACES, change=lambda text, _: with_literal_dollars(text)))
    for place in (plain["data"], *plain["data"]["sources"].values()):
        options = place["storage_options"]
        place["storage_options"] = {key: redacted(value) if key in SHOWN_OPTIONS else "(not shown)" for key, value in options.items()}
        place["shards"] = redacted(place["shards"])
    plain["evaluation"]["shards"] = redacted(plain["evaluation"]["shards"])
    for key in ("url", "resume"):
        plain["checkpoint"][key] = redacted(plain["checkpoint"][key])
    return plain
