"""Everything that a table is made from: the run's painter, the pictures to judge on, and the pictures whose patches may be pasted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import DataConfig, SourceConfig
from pipeline.evaluation.inpainting.parts import InpaintingError
from pipeline.evaluation.inpainting.settings import NEIGHBOURS, InpaintingConfig, stored_options
from pipeline.evaluation.inpainting.training_pictures import TrainingPictures
from pipeline.evaluation.painter import Painter, read_painter
from pipeline.mapping import ConfigError, from_mapping, with_places
from pipeline.masking import bank_of, mask_source
from pipeline.masking.source import MaskSource
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import HELD_BACK, Dataset, open_datasets
from pipeline.stream.decode.decoder import Decoder, make_decoder
from pipeline.stream.fixed import FixedChoice
from pipeline.stream.held_back import held_back_ids
from pipeline.stream.loader import StreamConfig
from pipeline.training.checkpoint.store import describe
from pipeline.training.mask_shapes import SHAPES, shapes_digest
from pipeline.training.record.run_folder import checkpoint_store
from shards.errors import ShardError
from shards.urls import redacted


@dataclass(frozen=True)
class Inputs:
    """See the module.

    Attributes:
        painter: the run's painter on its device.
        choice: pictures to judge on.
        training: pictures whose patches may be pasted; None where no method pastes.
        methods: names of the methods beside the checkpoint.
        facts: all that decides the figures, as plain values.
        notes: sentences that stand below the table.
    """

    painter: Painter
    choice: FixedChoice
    training: TrainingPictures | None
    methods: tuple[str, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Decoding:
    """A decoder for one thread, because several parts are computed at the same time."""

    decoder: Decoder
    threads: int = 1


def open_inputs(config: InpaintingConfig, device: torch.device, counters: Counters, stack: ExitStack) -> Inputs:
    """Opens everything that a table is made from.

    Args:
        config: settings.
        device: device of the network.
        counters: gets the counts of the readers.
        stack: closes what this opens.

    Raises:
        ExplainedError: the run, a data set or a setting can't be used.
    """
    options = config.data.storage_options
    painter = read_painter(config.run, options, config.step, device)
    run = describe(checkpoint_store(config.run, options), painter.step)
    decoder = make_decoder(config.data.decoder)

    def opened(data: DataConfig) -> list[Dataset]:
        found = open_datasets(data, int(run["config"]["seed"]), counters)
        for each in found:
            stack.callback(each.close)
        return found

    own = _OwnData(run, config, opened)
    judged = _judged(config, run, opened) if config.data.shards else own.datasets("data.shards")
    ids = [np.arange(each.manifest.total_samples) for each in judged] if config.data.shards else [own.held_back(each) for each in judged]
    mask = _masks(config, painter, run)
    stream = StreamConfig(config.data, painter.size, 1, int(run["config"]["seed"]), mask)
    total = sum(map(len, ids))
    choice = FixedChoice(stream, _Decoding(decoder), judged, ids, min(config.limit or total, total))
    if not choice.count:
        raise InpaintingError(
            f"{redacted(config.run)}: holds no pictures back (evaluation.held_back is 0, or its data set has fewer than 80). "
            "Name pictures to judge on with --data.shards"
            if not config.data.shards
            else f"data.shards: {redacted(config.data.shards)} has no samples"
        )
    notes, methods = _overlap(config, own, judged), config.names
    if notes and not config.train.shards:
        methods = tuple(name for name in methods if name not in NEIGHBOURS)
    training = _training(config, own, judged, opened, decoder, painter.size) if set(methods) & set(NEIGHBOURS) else None
    facts = {
        "format": "context-encoder inpainting 1",
        "recipe": painter.recipe.name,
        "step": painter.step,
        "network": _weights_digest(painter),
        "choice": choice.digest,
        "pictures": choice.count,
        "mask": {**dataclasses.asdict(config.mask), "shapes": shapes_digest(mask)},
        "crop": config.data.crop,
        "orientation": config.data.orientation,
        "methods": list(methods),
        **{name: getattr(config, name) for name in ("batch", "part", "train_part")},
        "decoder": decoder.description,
        "device": device.type,
        "torch": str(torch.__version__),
        "training": training.facts if training is not None else None,
        "grid": config.pictures,
    }
    return Inputs(painter, choice, training, methods, json.loads(json.dumps(facts)), notes)  # as a file gives them back


def _judged(config: InpaintingConfig, run: Mapping[str, Any], opened: Callable[[DataConfig], list[Dataset]]) -> list[Dataset]:
    """The data set to judge on.

    Raises:
        ShardError: it was named now and can't be read.
        InpaintingError: it is the run's evaluation.shards and can't be read.
    """
    try:
        return opened(config.data)
    except ShardError as error:
        of_run = dataclasses.replace(config.data, shards=run["config"].get("evaluation", {}).get("shards", ""))
        if config.data.shards != with_places(of_run, ("shards",)).shards:
            raise
        raise InpaintingError(f"the run's evaluation.shards can't be read: {error} Name pictures to judge on with --data.shards") from error


class _OwnData:
    """The data sets that a run was trained on, opened when they are asked for.

    Args:
        facts: facts of the checkpoint.
        config: settings.
        opened: opens data sets.
    """

    def __init__(self, facts: Mapping[str, Any], config: InpaintingConfig, opened: Callable[[DataConfig], list[Dataset]]) -> None:
        self._of_run, self._position, self._config, self._opened = facts["config"]["data"], facts["position"], config, opened
        self._found: list[Dataset] | None = None
        self.fingerprints = {value for key, value in self._position.items() if key.rpartition(".")[2] == "data_set"}

    def datasets(self, instead: str) -> list[Dataset]:
        """The data sets.

        Args:
            instead: setting that names others, for the error.

        Raises:
            InpaintingError: a data set can't be read, or is another one by now.
        """
        if self._found is None:
            try:
                self._found = self._opened(self._data())
            except ShardError as error:
                raise InpaintingError(
                    f"the data set that the run was trained on can't be read: {error} Name it, or another one, with --{instead}"
                ) from error
            for each in self._found:
                if each.manifest.fingerprint not in self.fingerprints:
                    raise InpaintingError(
                        f"{each.reader.index_reader.store.describe()}: holds another data set than the run was trained on. Name the "
                        f"right one, or another, with --{instead}"
                    )
        return self._found

    def held_back(self, dataset: Dataset) -> NDArray[np.int64]:
        """Ids of the samples of a data set that the run holds back, int64 (n,); none of a data set that it was not trained on."""
        for key, value in self._position.items():
            prefix, _, fact = key.rpartition(".")
            if fact == "data_set" and value == dataset.manifest.fingerprint:
                count = int(self._position.get(f"{prefix}.{HELD_BACK}" if prefix else HELD_BACK, 0))
                return held_back_ids(dataset.manifest, count) if count else np.empty(0, np.int64)
        return np.empty(0, np.int64)

    def _data(self) -> DataConfig:
        given = {**self._config.data.storage_options, **self._config.train.storage_options}

        def source(place: Mapping[str, Any]) -> dict[str, Any]:
            return {"shards": place["shards"], "storage_options": stored_options(place["storage_options"], given)}

        sources = {
            name: from_mapping(SourceConfig, source(place), f"data.sources.{name}") for name, place in self._of_run["sources"].items()
        }
        data = dataclasses.replace(self._config.data, sources=sources, **source(self._of_run))
        placed: DataConfig = with_places(data, ("shards", "sources.*.shards"))
        return placed


def _masks(config: InpaintingConfig, painter: Painter, run: Mapping[str, Any]) -> MaskSource:
    """The masks of the run, or those that the settings choose instead.

    Raises:
        ConfigError: others are chosen for a network that paints one place alone.
        InpaintingError: the bank of shapes is another one than the run was trained with.
        ShapesError: the bank can't be read.
    """
    own, mask = getattr(getattr(painter.recipe, "method", None), "mask", None), painter.recipe.mask
    if mask is not None and config.mask == own:
        _open_bank(mask, config)
        if shapes_digest(mask) != run.get(SHAPES, ""):
            raise InpaintingError(
                f"mask.shapes: {redacted(config.mask.shapes)} is another bank of shapes than the run was trained with. Give the right one, "
                "or --mask.shapes '' for generated shapes"
            )
        return mask
    if getattr(painter.recipe, "central", False):
        raise ConfigError(f"mask: {painter.where} paints the central region alone, so that no other mask can be judged. Leave --mask out")
    chosen = mask_source(config.mask)
    _open_bank(chosen, config)
    return chosen


def _open_bank(mask: MaskSource, config: InpaintingConfig) -> None:
    """Gives a bank of shapes the options of its store."""
    if (bank := bank_of(mask)) is not None:
        bank.options, bank.setting = config.data.storage_options, "mask.shapes"


def _overlap(config: InpaintingConfig, own: _OwnData, judged: Sequence[Dataset]) -> tuple[str, ...]:
    """A warning where the pictures to judge on are those that the run was trained on."""
    if not config.data.shards or not any(each.manifest.fingerprint in own.fingerprints for each in judged):
        return ()
    left_out = set(config.names) & set(NEIGHBOURS) and not config.train.shards
    return (
        f"{redacted(config.data.shards)} is the data set that the run was TRAINED on: the checkpoint's figures say nothing about other "
        "pictures. Leave --data.shards out to judge on the pictures that the run holds back"
        + (". The nearest neighbours are left out, because every picture would find itself" if left_out else ""),
    )


def _training(
    config: InpaintingConfig,
    own: _OwnData,
    judged: Sequence[Dataset],
    opened: Callable[[DataConfig], list[Dataset]],
    decoder: Decoder,
    side: int,
) -> TrainingPictures:
    """The pictures whose patches may be pasted.

    Raises:
        InpaintingError: they can't be read, or are those that are judged on.
    """
    if config.train.shards:
        options = {**config.data.storage_options, **config.train.storage_options}
        sets = opened(dataclasses.replace(config.data, shards=config.train.shards, storage_options=options))
    else:
        sets = own.datasets("train.shards, or leave nearest_hog and nearest_encoder out of --methods")
    if config.data.shards and {each.manifest.fingerprint for each in sets} & {each.manifest.fingerprint for each in judged}:
        raise InpaintingError(
            "train.shards: is the data set that is judged on, so that every picture would find itself. Name another one, or leave "
            f"{' and '.join(NEIGHBOURS)} out of --methods"
        )
    return TrainingPictures(sets, [own.held_back(each) for each in sets], decoder, config.data, side)


def _weights_digest(painter: Painter) -> str:
    """16 hexadecimal digits of the network's weights and settings."""
    seen = hashlib.sha256(repr(getattr(painter.recipe, "method", None)).encode())
    for name, tensor in sorted(painter.network.state_dict().items()):
        seen.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]
