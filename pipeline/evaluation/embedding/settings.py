"""Settings of `launch/embed.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Interval

from pipeline.command_line import overridden
from pipeline.config import DataConfig
from pipeline.mapping import ConfigError, from_mapping, with_places

Pool = Literal["average", "none"]
Crop = Literal["scaled", "stored"]
Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class EmbedConfig:
    """All settings that the features of a data set depend on."""

    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")]
    """Encoder: an exported folder or .safetensors file, or a run folder, whose newest checkpoint is taken; also as a URL."""
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.parquet")]
    """File OUT.parquet to write. Another name becomes a folder of part files, which is a parquet data set, too."""
    layer: str = ""
    """Layer whose output becomes the features, such as relu3; empty takes the encoder's last one."""
    pool: Pool = "average"
    """Features of a picture: average, the mean of each map, one value a map; none, all values of the maps (maps, rows, columns)."""
    crop: Crop = "scaled"
    """Part of a picture that the encoder sees: scaled, the middle of the picture after its shorter side was resized to that of the
    training's pictures, as the encoder's own transform takes it; stored, the middle at the stored scale, as data.crop center. Both are the
    same for shards that were built with that shorter side."""
    batch: Annotated[int, Interval(ge=1, le=65536)] = 64
    """Pictures that pass through the network at once. The last bits of the features may depend on it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the network's computation."""
    dtype: Dtype = "float16"
    """Number format of the features in the file."""
    limit: Annotated[int, Ge(0)] = 0
    """Embed only so many samples, the first ones of the data set; 0 embeds all."""
    part: Annotated[int, Interval(ge=1, le=2**20)] = 2048
    """Most samples of a part file, which is what an interruption loses on each rank: whole batches, of 64 MiB of features at most if one
    batch allows it."""
    workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Batches that pass through the network at the same time, on CPUs each on a core of its own; 0 divides the cores of the node by its
    ranks, and takes 2 on a GPU. The features do not depend on it."""
    data: DataConfig = field(default_factory=lambda: DataConfig(crop="center", flip=False, cache="none"))


def parse(arguments: Sequence[str], program: str = "launch/embed.py", description: str = "") -> EmbedConfig:
    """Reads the command line.

    Args:
        arguments: command line without the program.
        program: name of the program, for help.
        description: first lines of the help.

    Raises:
        ConfigError: a value of the wrong type or out of bounds, a variable that is not set, or a setting that embedding can't follow.
        SystemExit: --help, or an unknown or malformed argument, after it has been explained.
    """
    defaults = EmbedConfig(tyro.MISSING, tyro.MISSING)
    config: EmbedConfig = from_mapping(EmbedConfig, overridden(EmbedConfig, defaults, arguments, program, description))
    config = with_places(config, ("encoder", "output", "data.shards"))
    check(config)
    return config


def check_launcher(config: EmbedConfig, environment: Mapping[str, str]) -> None:
    """Refuses a precision of `accelerate launch` that embedding would not follow.

    Raises:
        ConfigError: the launcher and the settings have different precisions.
    """
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        raise ConfigError(
            f"precision: the launcher has mixed_precision {precision}, the settings {config.precision}. "
            f"Set --precision {'bf16' if precision == 'bf16' else 'fp32 or bf16'} or leave the launcher's at no"
        )


def check(config: EmbedConfig) -> None:
    """Refuses settings that embedding can't follow.

    Raises:
        ConfigError: naming the key.
    """
    data = config.data
    from_mapping(EmbedConfig, {item.name: getattr(config, item.name) for item in dataclasses.fields(config)})
    if data.sources or not data.shards:
        raise ConfigError("data.shards: give the URL of one data set: --data.shards FOLDER or s3://bucket/prefix. Embed several one by one")
    if data.crop != "center":
        raise ConfigError(f"data.crop: the middle of every picture is embedded, not {data.crop}. Leave it out, and see --crop")
    if data.flip:
        raise ConfigError("data.flip: pictures are embedded as they are. Leave it out")
    if data.cache not in ("none", "auto"):
        raise ConfigError("data.cache: every byte is read once, so nothing is cached. Leave it out")
    if data.unavailable != "stop":
        raise ConfigError(
            "data.unavailable: a file that lacks the samples of a shard because a store was down for a moment would look whole. "
            "Leave it at stop: the same command continues"
        )
    if "://" in config.output:
        raise ConfigError(f"output: {config.output}: name a file on a disk that all ranks share, and copy it to the store afterwards")
