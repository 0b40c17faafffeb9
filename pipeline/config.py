"""One frozen tree of settings for a run: a YAML file, then dotted overrides from the command line, then never changed.

The meaning, unit and default of every field are written here once; `--help`, the reference page and the errors all come from
this text. What a wrong key or value costs is a message before any rank starts, never a run that trained something else.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
import yaml

from monitoring.settings import EndpointError, MonitoringConfig
from monitoring.settings import check as check_monitoring
from pipeline.mapping import ConfigError, from_mapping, nearest
from shards.store import redacted

MethodT = TypeVar("MethodT")
_SHOWN_OPTIONS = frozenset({"endpoint_url", "profile", "anon", "region_name", "use_ssl", "requester_pays"})


@dataclass(frozen=True)
class OptimiserConfig:
    """The rule that turns a player's gradients into steps."""

    kind: Literal["adam", "sgd"] = "adam"
    """Rule; weight decay is decoupled from the gradient (AdamW) with adam."""
    learning_rate: float = 1e-4
    """Rate at the schedule's peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    epsilon: float = 1e-8
    """Adam's denominator floor."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """Share of a weight that is taken off, times the rate, each step."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How every player's learning rate moves over the run, as a factor of its own rate."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    """After the warm-up: constant, a half cosine down to `final_factor`, or times `step_factor` every `step_every` steps."""
    warmup_steps: int = 0
    """Steps of linear rise from zero."""
    final_factor: float = 0.0
    """Factor at the end of the cosine."""
    step_every: int = 10_000
    """Steps between two falls."""
    step_factor: float = 0.5
    """What a fall multiplies the rate by."""


@dataclass(frozen=True)
class SourceConfig:
    """One of several data sets that are mixed."""

    shards: str = ""
    """URL of its data set, as data.shards."""
    weight: float = 1.0
    """Its share of every batch against the other sources' weights."""
    storage_options: dict[str, str] = field(default_factory=dict)
    """Options of its store, on top of data.storage_options."""


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from and how they reach the device."""

    shards: str = ""
    """URL of a data set made by `python -m shards build`: a folder, s3://bucket/prefix, or its manifest.json."""
    storage_options: dict[str, str] = field(default_factory=dict)
    """Options of the store beyond its own environment and profiles, as in fsspec: endpoint_url=..., profile=..., anon=true."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Several data sets by name instead of data.shards, each with its shards and its weight. Every batch takes the same number of
    samples of each; the order of the names is part of the run's identity."""
    crop: Literal["random", "random_resized", "center"] = "random"
    """random: a crop at the stored scale (the paper's); random_resized: 8 to 100 % of the area, aspect 3/4 to 4/3,
    antialiased; center: for evaluation."""
    flip: bool = True
    """Mirror half of the pictures; never with center."""
    lanes: int = 64
    """Canonical streams of the order; the greatest common divisor of this and the batch is used. Part of the order's identity."""
    shuffle_block: int = 4096
    """Samples that are shuffled together inside a lane. Part of the order's identity."""
    tail: Literal["drop", "pad"] = "drop"
    """What to do with the samples of an epoch that fill no batch: leave them out this time, or fill up with the epoch's first ones."""
    decoder: Literal["simplejpeg", "nvimgcodec"] = "simplejpeg"
    """simplejpeg decodes the rows that a crop needs; nvimgcodec (the extra `decode`, no GPU needed) its rectangle, which is faster
    on full-size pictures but accepts pictures that were stored damaged. A run keeps the one it began with."""
    threads: int = 0
    """Decoding threads a rank; 0 takes the node's cores divided by its ranks, at most 16."""
    ready_batches: int = 3
    """Batches a rank prepares ahead."""
    requests: int = 32
    """Requests to a remote store that a rank has under way at the same time for samples that its cache does not hold."""
    cache: str = "auto"
    """Folder for shards from a remote store, shared by the ranks of a node; `auto` is a folder in $TMPDIR, `none` reads
    samples as ranges. Local shards are read in place."""
    cache_gb: float = 20.0
    """Bytes the cache may hold, in 10^9; the least recently used shards go first."""
    retries: int = 8
    """Attempts of one request to the store after the first, with exponential backoff and jitter."""
    stall_seconds: float = 60.0
    """Longest wait for the next bytes of a request before it is tried again."""
    max_bad_fraction: float = 1e-4
    """Share of the data set that may turn out unreadable while training; each is replaced, counted and named in
    quarantine.jsonl, past this the run stops."""
    unavailable: Literal["stop", "substitute"] = "stop"
    """What to do when a shard can't be had after every retry: stop the run with its name, or count its samples as unreadable and go on
    as long as max_bad_fraction allows. The samples that are trained on then depend on the moment."""
    max_pixels: int = 100_000_000
    """Largest picture that is decoded, in pixels."""


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    steps: int = 100_000
    """Steps of the whole run, counted over all its attempts."""
    global_batch: int = 256
    """Samples a step, over all ranks. What the method sees: it never changes with the number of ranks."""
    micro_batch: int = 256
    """Most samples that go through a device at once. What fits: it does not change the result."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes the networks in bfloat16 with float32 weights and losses."""
    mode: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """How ranks share the work: ddp holds everything on each; DeepSpeed's ZeRO (the extra `deepspeed`) divides the optimiser's state
    (zero1), gradients too (zero2), weights too (zero3). It does not change the result, and a run may change it when it is resumed."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What ZeRO keeps in the memory of the CPU: the optimiser's state, or with zero3 that and the weights."""
    max_gradient_norm: float = 0.0
    """Gradients of a player are scaled down to this norm; 0 leaves them."""
    max_nonfinite_steps: int = 10
    """Steps in a row with a gradient that is not finite that are skipped before the run stops."""
    log_every: int = 10
    """Steps between two lines of the console and reads of the device."""
    pictures_every: int = 1000
    """Steps between two PNG grids in the run folder; 0 makes none."""
    pictures: int = 8
    """Pictures in a grid."""
    threads: int = 1
    """CPU threads of torch a rank. Part of the result's last bits on CPUs."""
    timeout_minutes: float = 10.0
    """Longest wait for another rank to join, and what watchdog.stall_minutes is derived from; without the watchdog the longest wait of any
    collective."""
    deterministic: bool = True
    """Algorithms that give the same bits in every run; false lets cuDNN pick the fastest."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What survives."""

    url: str = ""
    """Where checkpoints go: a folder or s3://bucket/prefix; empty is RUN/checkpoints. The store's options are those of
    data.storage_options."""
    every: int = 1000
    """Steps between two checkpoints; one more is saved at the end and on SIGTERM or SIGUSR1."""
    keep_last: int = 3
    """Newest checkpoints that are kept."""
    read_back: bool = True
    """Read every byte of a new checkpoint from the store and compare it before an older one is deleted, beside the training."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for good; 0 keeps none."""
    resume: str = "auto"
    """auto: the newest checkpoint of the run that verifies, if there is one; none: refuse to start where there is any;
    else the folder of a checkpoint to start from while the run has none of its own."""
    other_decoder: bool = False
    """Continue although the pictures were decoded by other software before, which may change the last bit of a pixel."""


@dataclass(frozen=True)
class WatchdogConfig:
    """What ends a run that hangs, and what is reported about one that is not well. See docs/watchdogs.md."""

    enabled: bool = True
    """End a rank that does not move on, with the stacks of its threads in RUN/stacks. Set it to false under a debugger."""
    startup_minutes: float = 30.0
    """Longest time from the start of a rank to the end of its first step: joining, checkpoint and first batch included."""
    stall_minutes: float = 0.0
    """Longest wait inside one step, for data or for the step itself; 0: nine tenths of training.timeout_minutes, and with a remote store at
    least as long as one request may be tried again (data.retries, data.stall_seconds)."""
    checkpoint_minutes: float = 30.0
    """Longest time that training may stand still for a checkpoint; where the stall's is longer, that."""
    grace_seconds: float = 60.0
    """What a checkpoint that is being written gets to be done before a rank that hangs is ended."""
    starving_share: float = 0.5
    """Share of the time, 0 to 1, that a rank may wait for data before it is reported; 1 reports nothing."""
    starving_seconds: float = 60.0
    """Window of that share, in seconds."""
    collapse_steps: int = 500
    """Steps in a row over which the losses that a recipe declares as a collapse are averaged before one is reported; 0 reports none."""


@dataclass(frozen=True)
class Config(Generic[MethodT]):
    """Everything a run depends on."""

    method: MethodT
    """Settings of the recipe itself."""
    recipe: str = "features"
    """The pretext task: one file of pipeline/recipes."""
    run: str = "runs/default"
    """Folder that holds everything the run writes; the same folder again continues the run."""
    seed: int = 0
    """Order, crops, masks, dropout and initial weights follow from it."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


def parse(methods: Mapping[str, type], arguments: Sequence[str], program: str = "launch/pretrain.py", description: str = "") -> Config[Any]:
    """Reads `--config FILE.yaml` and dotted overrides into one tree.

    Args:
        methods: recipe name -> the frozen dataclass of its settings.
        arguments: the command line without the program.
        program: its name, for help.
        description: the first lines of help.

    Raises:
        ConfigError: unknown key in the file, wrong type, a value out of range.
        SystemExit: --help, or an unknown or malformed argument, after it has been explained.
    """
    remaining, file_name = _take(arguments, "--config")
    from_file = _read_yaml(Path(file_name)) if file_name else {}
    _, recipe = _take(remaining, "--recipe")
    recipe = recipe or str(from_file.get("recipe", "features"))
    if recipe not in methods:
        raise ConfigError(f"recipe: {recipe!r} is not a recipe{nearest(recipe, methods)}. There are: {', '.join(sorted(methods))}")
    _name_sources(from_file, remaining)
    config_type: Any = types.GenericAlias(Config, (methods[recipe],))
    defaults: Config[Any] = from_mapping(Config, {**from_file, "recipe": recipe}, method=methods[recipe])
    config: Config[Any] = tyro.cli(
        config_type,
        prog=program,
        description=f"{description}\n\nA file of the same settings comes first: --config FILE.yaml",
        default=defaults,
        args=remaining,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed),
    )
    check(config)
    return config


def check(config: Config[Any]) -> None:
    """Refuses values that no run could use.

    Raises:
        ConfigError: naming the key.
    """
    training, data, schedule, checkpoint = config.training, config.data, config.schedule, config.checkpoint
    for key, value, least in (
        ("seed", config.seed, 0),
        ("training.steps", training.steps, 1),
        ("training.global_batch", training.global_batch, 1),
        ("training.micro_batch", training.micro_batch, 1),
        ("training.log_every", training.log_every, 1),
        ("training.pictures_every", training.pictures_every, 0),
        ("training.pictures", training.pictures, 1),
        ("training.threads", training.threads, 1),
        ("training.max_gradient_norm", training.max_gradient_norm, 0),
        ("training.max_nonfinite_steps", training.max_nonfinite_steps, 0),
        ("data.lanes", data.lanes, 1),
        ("data.shuffle_block", data.shuffle_block, 1),
        ("data.threads", data.threads, 0),
        ("data.ready_batches", data.ready_batches, 1),
        ("data.requests", data.requests, 1),
        ("data.cache_gb", data.cache_gb, 0),
        ("data.retries", data.retries, 0),
        ("data.max_bad_fraction", data.max_bad_fraction, 0),
        ("data.max_pixels", data.max_pixels, 1),
        ("schedule.warmup_steps", schedule.warmup_steps, 0),
        ("schedule.step_every", schedule.step_every, 1),
        ("checkpoint.every", checkpoint.every, 1),
        ("checkpoint.keep_last", checkpoint.keep_last, 1),
        ("checkpoint.keep_every", checkpoint.keep_every, 0),
        ("monitoring.port", config.monitoring.port, 0),
        ("monitoring.peak_teraflops", config.monitoring.peak_teraflops, 0),
        ("watchdog.stall_minutes", config.watchdog.stall_minutes, 0),
        ("watchdog.grace_seconds", config.watchdog.grace_seconds, 0),
        ("watchdog.collapse_steps", config.watchdog.collapse_steps, 0),
    ):
        if not least <= value < math.inf:  # also refuses NaN
            raise ConfigError(f"{key}: {value} is below {least}, or not finite")
    for key, value in (
        ("training.timeout_minutes", training.timeout_minutes),
        ("data.stall_seconds", data.stall_seconds),
        ("watchdog.startup_minutes", config.watchdog.startup_minutes),
        ("watchdog.checkpoint_minutes", config.watchdog.checkpoint_minutes),
        ("watchdog.starving_share", config.watchdog.starving_share),
        ("watchdog.starving_seconds", config.watchdog.starving_seconds),
        ("monitoring.pushgateway_seconds", config.monitoring.pushgateway_seconds),
    ):
        if not 0 < value < math.inf:
            raise ConfigError(f"{key}: {value} is not above 0, or not finite")
    if config.watchdog.starving_share > 1:
        raise ConfigError(f"watchdog.starving_share: {config.watchdog.starving_share} is above 1: give a share of the time, 0.5 for half")
    if not data.cache:
        raise ConfigError("data.cache: give a folder, auto or none")
    if config.seed >= 2**63:
        raise ConfigError(f"seed: {config.seed} is not below 2**63")
    _check_sources(data)
    _check_monitoring(config.monitoring)
    check_mode(training)
    if not config.run:
        raise ConfigError("run: give the folder that this run writes into: --run runs/NAME")


def check_mode(training: TrainingConfig) -> None:
    """Refuses what a mode can't offload.

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


def _check_sources(data: DataConfig) -> None:
    if bool(data.shards) == bool(data.sources):
        what = "is given beside data.sources: name every data set there" if data.shards else "give the URL of a data set"
        raise ConfigError(f"data.shards: {what}: --data.shards FOLDER or s3://bucket/prefix")
    for name, source in data.sources.items():
        if not re.fullmatch(r"\w+", name):
            raise ConfigError(f"data.sources: {name!r} is no name: letters, digits and _ will do")
        if not source.shards:
            raise ConfigError(f"data.sources.{name}.shards: give the URL of a data set")
        if not 0 < source.weight < math.inf:
            raise ConfigError(f"data.sources.{name}.weight: {source.weight} is not above 0")


def _check_monitoring(monitoring: MonitoringConfig) -> None:
    if monitoring.port > 65535:
        raise ConfigError(f"monitoring.port: {monitoring.port} is above 65535")
    try:
        check_monitoring(monitoring)
    except EndpointError as error:
        raise ConfigError(str(error)) from None


def to_mapping(config: Config[Any]) -> dict[str, Any]:
    """The tree as plain values, for YAML and JSON, without what is secret in the options of the store."""
    plain: dict[str, Any] = dataclasses.asdict(config)
    for place in (plain["data"], *plain["data"]["sources"].values()):
        options = place["storage_options"]
        place["storage_options"] = {key: redacted(value) if key in _SHOWN_OPTIONS else "(not shown)" for key, value in options.items()}
        place["shards"] = redacted(place["shards"])
    for key in ("url", "resume"):
        plain["checkpoint"][key] = redacted(plain["checkpoint"][key])
    return plain


def _name_sources(values: dict[str, Any], arguments: Sequence[str]) -> None:
    """Makes a place for each source that only the command line names, so that its settings have somewhere to go."""
    named = [found[1] for argument in arguments if (found := re.match(r"--data\.sources\.(\w+)\.", argument))]
    if named and isinstance(data := values.setdefault("data", {}), dict) and isinstance(sources := data.setdefault("sources", {}), dict):
        for name in named:
            sources.setdefault(name, {})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: holds {type(values).__name__}, not a table of settings")
    return values


def _take(arguments: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """The arguments without `name VALUE` or `name=VALUE`, and the value."""
    rest, value, position = [], None, 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == name:
            if position + 1 == len(arguments):
                raise ConfigError(f"{name}: a value is missing")
            value = arguments[position + 1]
            position += 1
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
        position += 1
    return rest, value
