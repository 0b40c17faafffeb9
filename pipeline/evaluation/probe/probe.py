"""The probe of an encoder: frozen features of its layers, judged by simple classifiers, beside its random start and beside plain colour."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation import encoder as encoders
from pipeline.evaluation.encoder import TrainedEncoder
from pipeline.evaluation.probe.coordinates import memory
from pipeline.evaluation.probe.cross_validation import CLASSIFIERS, Judged, Protocol, by_chosen_layer
from pipeline.evaluation.probe.features import RIVALS, VALUES, Extracted, Source, extracted
from pipeline.evaluation.probe.folds import Fold, stratified_folds
from pipeline.evaluation.probe.neighbours import NEIGHBOURS
from pipeline.evaluation.probe.pictures import Chosen, LabelledPictures, ProbeError, choose, divided
from pipeline.evaluation.probe.verdict import too_few
from shards.counting import counted

ENCODER, CHOSEN = "encoder", "chosen layer"
"""Name of the trained encoder among the sources, and of the layer that each fold chooses."""
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of a probe.

    Attributes:
        layers: names of the layers; empty takes all that `pipeline.evaluation.encoder.layers` names.
        classifiers: names out of `CLASSIFIERS`.
        folds: folds of the cross-validation, 2 or more.
        ks: numbers of neighbours to try, ascending.
        limit: most pictures of a class; None takes all.
        random_starts: number of random starts. The first has the seed of the encoder's own run, so it is where the encoder came from.
        seed: seed of the folds and of every draw.
        device: device of networks, ridge and neighbours.
        scratch: folder for the features; None takes the system's folder for temporary files.
    """

    layers: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = CLASSIFIERS
    folds: int = 5
    ks: tuple[int, ...] = NEIGHBOURS
    limit: int | None = None
    random_starts: int = 1
    seed: int = 0
    device: str = "cpu"
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ProbeError(f"--folds {self.folds}: give 2 or more")
        if not self.ks or min(self.ks) < 1 or sorted(set(self.ks)) != list(self.ks):
            raise ProbeError(f"--knn {' '.join(map(str, self.ks))}: give numbers of neighbours from 1 up, ascending")
        if self.limit is not None and self.limit < self.folds:
            raise ProbeError(f"--limit {self.limit}: give as many pictures of a class as there are folds ({self.folds}), or more")
        if self.random_starts < 1:
            raise ProbeError(f"--random-starts {self.random_starts}: give 1 or more, because a probe means nothing without")
        if not 0 <= self.seed < 2**32:
            raise ProbeError(f"--seed {self.seed}: give a number from 0 to 2**32-1")
        if self.scratch is not None and not self.scratch.is_dir():
            raise ProbeError(f"--scratch {self.scratch}: is no folder. Make it first, or name another one")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ProbeError(f"--device {self.device}: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class ProbeResult:
    """A finished probe.

    Attributes:
        encoder: the encoder.
        layers: names of the layers that were probed, from the first on.
        settings: settings of the probe.
        pictures: the pictures that were judged, and what was left out.
        folds: folds of the cross-validation, over the rows of `pictures`.
        sources: names of the sources of features: the encoder, its random starts, the rivals without a network.
        values: values a picture, by source and layer; the rivals' layer is "".
        judged: answers by source and layer, then by classifier; `CHOSEN` is the layer that each fold chose.
        too_few: sentence if there are too few pictures for a verdict.
    """

    encoder: TrainedEncoder
    layers: tuple[str, ...]
    settings: ProbeSettings
    pictures: Chosen
    folds: tuple[Fold, ...]
    sources: tuple[str, ...]
    values: Mapping[tuple[str, str], int]
    judged: Mapping[tuple[str, str], Mapping[str, Judged]]
    too_few: str | None


def probe(
    encoder: TrainedEncoder, pictures: LabelledPictures, settings: ProbeSettings, report: Callable[[str], None] = lambda _: None
) -> ProbeResult:
    """Probes an encoder on labelled pictures.

    Args:
        encoder: the encoder.
        pictures: labelled pictures.
        settings: settings of the probe.
        report: called with a line for a person now and then.

    Raises:
        ProbeError: too few classes or pictures, or too little disk or memory.
        EncoderInvalid: no layer of a name, or a recipe that is not here and whose random start can't be made.
    """
    trained = encoder.module()
    places = {name: place for place, (name, _) in enumerate(trained.named_children())}  # an unknown name is refused with the first batch
    layers = sorted(set(settings.layers or encoders.layers(trained)), key=lambda name: places.get(name, -1))
    seeds = range(encoder.facts.seed, encoder.facts.seed + settings.random_starts)
    starts = [Source(f"random start, seed {seed}", encoders.random_start(encoder.facts, seed)) for seed in seeds]
    chosen = choose(pictures, settings.folds, settings.limit, settings.seed)
    _refuse_full_memory(len(chosen.numbers), settings)
    device = torch.device(settings.device)
    with (
        tempfile.TemporaryDirectory(prefix="probe-", dir=settings.scratch) as folder,
        extracted(
            pictures,
            chosen.numbers,
            encoder.facts.transform.picture,
            [Source(ENCODER, trained), *starts],
            layers,
            Path(folder),
            settings.seed,
            device,
            report,
        ) as found,
    ):
        # a picture that can't be decoded has no row, so that rows are counted anew, and classes that have become too small fall away
        kept, rows = _decoded(chosen, found, settings)
        protocol = Protocol(
            kept.labels,
            len(kept.classes),
            stratified_folds(kept.labels, settings.folds, settings.seed),
            settings.seed,
            settings.classifiers,
            settings.ks,
            device,
        )
        judged: dict[tuple[str, str], Mapping[str, Judged]] = {}
        for number, (key, table) in enumerate(found.tables.items(), start=1):
            judged[key] = protocol.judge(table if rows is None else table.only(rows))
            report(f"{number} of {len(found.tables)} kinds of features: {' '.join(filter(None, key))}")
        values = {key: table.width for key, table in found.tables.items()}
    for name in (ENCODER, *(start.name for start in starts)):
        by_layer = {each: {layer: judged[name, layer][each] for layer in layers} for each in settings.classifiers}
        judged[name, CHOSEN] = {each: by_chosen_layer(by_layer[each], protocol.folds) for each in settings.classifiers}
    return ProbeResult(
        encoder,
        tuple(layers),
        settings,
        kept,
        tuple(protocol.folds),
        (ENCODER, *(start.name for start in starts), *RIVALS),
        values,
        judged,
        too_few(kept.labels, kept.classes),
    )


def _decoded(chosen: Chosen, found: Extracted, settings: ProbeSettings) -> tuple[Chosen, np.ndarray | None]:
    """The pictures that could be decoded and whose classes are still large enough, and the rows of the tables that are theirs."""
    if not found.damaged:
        return chosen, None
    labels = chosen.labels[np.searchsorted(chosen.numbers, found.numbers)]
    kept = divided(found.numbers, labels, chosen.classes, settings.folds, None, settings.seed)
    named = ", ".join(map(str, found.damaged[:10]))
    note = f"{counted(len(found.damaged), 'picture')} could not be decoded, and left out: numbers {named}"
    rows = np.searchsorted(found.numbers, kept.numbers)
    return Chosen(kept.numbers, kept.labels, kept.classes, (*chosen.notes, note, *kept.notes)), rows


def _refuse_full_memory(pictures: int, settings: ProbeSettings) -> None:
    """Refuses what the classifiers could not hold, before the features are made.

    Raises:
        ProbeError: the linear classifiers need more memory than the machine has left.
    """
    if not {"ridge", "logistic"} & set(settings.classifiers) or settings.device != "cpu" or not _MEMINFO.exists():
        return
    test = pictures // settings.folds
    needed = memory(VALUES, pictures - test, test) * (2 if "logistic" in settings.classifiers else 1)
    (free,) = (1024 * int(line.split()[1]) for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    if needed > 0.9 * free:
        raise ProbeError(
            f"{' and '.join(name for name in settings.classifiers if name != 'neighbours')} of {counted(pictures, 'picture')} hold about "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: take fewer pictures of a class with --limit, or "
            "--classifiers neighbours"
        )
