"""Settings of `launch/evaluate.py inpainting`.

The command line is read twice: first for the run, then with the run's own crops and masks as the defaults of all that it does not set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from annotated_types import Ge, Interval

from pipeline.command_line import overridden
from pipeline.config import DataConfig
from pipeline.mapping import ConfigError, from_mapping, with_places
from pipeline.masking import MaskConfig
from pipeline.spelling import nearest
from pipeline.training.checkpoint.store import CheckpointInvalid, CheckpointStore, describe
from pipeline.training.record.run_folder import checkpoint_store
from shards.store import Options

NETWORK = "context_encoder"
FILLS = ("mean", "telea", "navier_stokes", "patchmatch")
NEIGHBOURS = ("nearest_hog", "nearest_encoder")
METHODS = (*NEIGHBOURS, *FILLS)
_PLACES = ("run", "out", "lpips", "data.shards", "train.shards", "mask.shapes")
_HIDDEN = "(not shown)"  # value of an option of a store in a checkpoint's settings
_OF_A_RUN = ("shuffle_block", "lanes", "tail", "decoder", "crop", "flip", "orientation", "max_pixels", "max_bad_fraction")


@dataclass(frozen=True)
class TrainConfig:
    """Pictures whose patches the nearest neighbours paste."""

    shards: str = ""
    """URL of a data set; empty takes those that the run was trained on, as its checkpoint names them. Pictures that the run holds back are
    never pasted."""
    storage_options: dict[str, str] = field(default_factory=dict)
    """Options of the store, added to data.storage_options."""


@dataclass(frozen=True)
class InpaintingConfig:
    """All settings that the table depends on."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or the URL of a run's checkpoints."""
    out: str = ""
    """Folder of the table, its figures and pictures; empty is RUN/inpainting/step_XXXXXXXXX. All ranks share it."""
    step: Annotated[int, Ge(0)] | None = None
    """Step of the checkpoint; None takes the newest that verifies."""
    methods: str = "all"
    """Methods beside the checkpoint, joined by commas: mean, telea, navier_stokes, patchmatch, nearest_hog, nearest_encoder; or all; or
    none."""
    limit: Annotated[int, Ge(0)] = 0
    """Most pictures, spread evenly over the data set; 0 takes all."""
    batch: Annotated[int, Interval(ge=1, le=4096)] = 32
    """Pictures that pass through the network at once. The last bits of its figures may depend on it."""
    part: Annotated[int, Interval(ge=1, le=2**16)] = 32
    """Pictures of a part file, whole batches, which is what an interruption loses on each core."""
    train_part: Annotated[int, Interval(ge=1, le=2**20)] = 2048
    """Pictures whose patches could be pasted that are searched as one part."""
    workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Parts that are computed at the same time, on CPUs each on a core of its own; 0 divides the cores of the node by its ranks, and takes
    2 on a GPU. The table does not depend on it."""
    pictures: Annotated[int, Interval(ge=0, le=64)] = 8
    """Rows of the picture grid; 0 draws none."""
    lpips: str = ""
    """File of LPIPS's weights (AlexNet and its five linear layers); empty leaves LPIPS out. See docs/inpainting.md."""
    fid: str = ""
    """Not computed here: the message says how to compute FID from the fills that --save True writes."""
    save: bool = False
    """Write every filled picture as a PNG into OUT/fills/METHOD, for figures that other programs compute."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masks; by default those of the run, and with another kind than the run's the defaults of that kind. A network for a central region
    takes no other."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(cache="none"))
    """Pictures to judge on; without data.shards the run's evaluation.shards, or those that it holds back. Crops and decoder are by
    default those of the run."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods beside the checkpoint, in the order of the table."""
        return _names(self.methods)


def parse(arguments: Sequence[str], program: str = "launch/evaluate.py inpainting", description: str = "") -> InpaintingConfig:
    """Reads the command line.

    Args:
        arguments: command line without the program.
        program: name of the program, for help.
        description: first lines of the help.

    Raises:
        ConfigError: a value of the wrong type or out of bounds, a variable that is not set, or settings that contradict each other.
        CheckpointInvalid: the run has no such checkpoint.
        StoreError: the store of the checkpoints does not answer.
        SystemExit: --help, or an unknown or malformed argument, after it has been explained.
    """
    first = _run_of(arguments, program, description)
    facts = facts_of_run(first.run, first.data.storage_options, first.step)
    of_run = _defaults(facts)
    config = _read(of_run, arguments, program, description, other_mask=dataclasses.replace(of_run, mask=MaskConfig()))
    if config.data.shards and not first.data.shards:  # the data set that the run was evaluated on, with the options of its store
        options = stored_options(facts["config"]["data"]["storage_options"], config.data.storage_options)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, storage_options=options))
    check(config)
    return config


def facts_of_run(run: str, options: Options | None, step: int | None) -> dict[str, Any]:
    """The facts of a checkpoint, from its commit file; of the newest one where no step is given.

    Raises:
        CheckpointInvalid: there is no such checkpoint.
    """
    store = checkpoint_store(run, options)
    error = CheckpointInvalid(f"{store.describe()}: holds no checkpoint. Name the folder of a run, or the URL of its checkpoints")
    for each in reversed(CheckpointStore(store).steps() if step is None else [step]):
        try:
            return describe(store, each)
        except CheckpointInvalid as damage:
            error = damage
    raise error


def check(config: InpaintingConfig) -> None:
    """Refuses settings that can't be followed.

    Raises:
        ConfigError: naming the key.
    """
    from_mapping(InpaintingConfig, {item.name: getattr(config, item.name) for item in dataclasses.fields(config)})
    names = config.names
    if config.data.sources:
        raise ConfigError("data.sources: give the URL of one data set, --data.shards URL. Judge on several one by one")
    if config.data.unavailable != "stop":
        raise ConfigError("data.unavailable: a table without the pictures of a store that was down would look whole. Leave it at stop")
    if config.train.shards and not set(names) & set(NEIGHBOURS):
        raise ConfigError(f"train.shards: only {' and '.join(NEIGHBOURS)} paste from it, and methods names neither. Leave it out")
    for name in ("out", "lpips"):
        if "://" in getattr(config, name):
            raise ConfigError(f"{name}: {getattr(config, name)}: name a path on a disk that all ranks share")
    if config.fid:
        raise ConfigError(
            "fid: FID is not computed here, because its Inception network and weights (those of pytorch-fid, which needs torchvision) "
            "can't be checked without them. Write the fills with --save True and compare the folders: python -m "
            "pytorch_fid OUT/fills/truth OUT/fills/context_encoder. See docs/inpainting.md"
        )


def stored_options(of_run: Options, given: Options) -> dict[str, Any]:
    """The options of a store as a checkpoint names them, without those that it does not show, and with those given now."""
    return {**{key: value for key, value in of_run.items() if value != _HIDDEN}, **given}


def _names(methods: str) -> tuple[str, ...]:
    if methods in ("all", "none"):
        return METHODS if methods == "all" else ()
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"methods: {name!r} is none of {', '.join(METHODS)}{nearest(name, METHODS)}")
    return tuple(name for name in METHODS if name in names)


def _run_of(arguments: Sequence[str], program: str, description: str) -> InpaintingConfig:
    """Reads which run and data set a command line names; other settings may fit the run's own alone, so that they are not looked at."""
    values = overridden(InpaintingConfig, InpaintingConfig(tyro.MISSING), arguments, program, description)
    data = {name: values["data"][name] for name in ("shards", "storage_options")}
    config: InpaintingConfig = from_mapping(InpaintingConfig, {"run": values["run"], "step": values["step"], "data": data})
    placed: InpaintingConfig = with_places(config, _PLACES)
    return placed


def _read(
    defaults: InpaintingConfig, arguments: Sequence[str], program: str, description: str, other_mask: InpaintingConfig
) -> InpaintingConfig:
    """Reads the command line over some defaults; where it names another kind of masks than theirs, over `other_mask`."""
    values = overridden(InpaintingConfig, defaults, arguments, program, description)
    if values["mask"]["kind"] != defaults.mask.kind:
        values = overridden(InpaintingConfig, other_mask, arguments, program, description)
    config: InpaintingConfig = from_mapping(InpaintingConfig, values)
    placed: InpaintingConfig = with_places(config, _PLACES)
    return placed


def _defaults(facts: Mapping[str, Any]) -> InpaintingConfig:
    """The settings that a run was trained with, as far as they say how pictures are cut and hidden."""
    of_run = facts["config"]
    data = {name: of_run["data"][name] for name in _OF_A_RUN if name in of_run["data"]}
    data["shards"] = of_run.get("evaluation", {}).get("shards", "")
    mask = of_run["method"].get("mask")
    return dataclasses.replace(
        InpaintingConfig(tyro.MISSING),
        data=from_mapping(DataConfig, {**data, "cache": "none"}, "data"),
        mask=from_mapping(MaskConfig, mask, "mask") if isinstance(mask, Mapping) else MaskConfig(),
    )
