"""Frozen features of every layer, of a trained network and of others, in one pass over the pictures.

In: pictures and networks. Out: for each network and layer a table of about 9,000 values a picture (Zhang et al. 2017, arXiv:1611.09842),
and the tables of two rivals that know no network: the mean colour, and the picture shrunk to 16 x 16 pixels.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.evaluation.encoder import layer_outputs
from pipeline.evaluation.probe.pictures import LabelledPictures, ProbeError, batches
from pipeline.evaluation.probe.table import FeatureTable
from pipeline.model.batch_norm import GroupedBatchNorm2d, recomputed_statistics
from shards.counting import counted

VALUES = 9216
"""Values a picture that the maps of a layer are pooled to, as nearly as a square grid allows."""
RIVALS = {"mean colour": 1, "pixels 16 x 16": 16}
"""Features without a network, and the side of the grid that the picture is averaged to."""
BATCH = 64
_STATISTICS_PICTURES = 512  # pictures that the statistics of batch norm are taken over


@dataclass(frozen=True)
class Source:
    """A network whose features are probed.

    Attributes:
        name: name in the report.
        network: chain of named layers in evaluation mode.
    """

    name: str
    network: nn.Module


@dataclass(frozen=True)
class Extracted:
    """Features of all pictures.

    Attributes:
        tables: table by name of the source and of the layer; the rivals' under their name and "".
        numbers: int64 (rows,), number of the picture in each row.
        damaged: numbers of the pictures that could not be decoded.
    """

    tables: Mapping[tuple[str, str], FeatureTable]
    numbers: NDArray[np.int64]
    damaged: tuple[int, ...]


def grid_side(maps: int, side: int) -> int:
    """The side of the grid, at most that of the maps, with which maps x side x side is nearest to `VALUES`; the smaller one of equals."""
    wanted = math.sqrt(VALUES / maps)
    nearby = {min(side, max(1, each)) for each in (math.floor(wanted), math.ceil(wanted))}
    return min(sorted(nearby), key=lambda each: abs(maps * each * each - VALUES))


def pooled(outputs: Tensor) -> Tensor:
    """Averages the maps of a layer over a grid of about 9,216 values: float32 (n, maps, H, W) becomes float32 (n, values)."""
    side = grid_side(outputs.shape[1], min(outputs.shape[2:]))
    return adaptive_avg_pool2d(outputs, side).flatten(1)


@contextmanager
def extracted(
    pictures: LabelledPictures,
    numbers: NDArray[np.int64],
    transform: Callable[[Image.Image], Tensor],
    sources: Sequence[Source],
    layers: Sequence[str],
    folder: Path,
    seed: int,
    device: torch.device,
    report: Callable[[str], None],
) -> Iterator[Extracted]:
    """Runs every picture through every network once, and keeps the features in files until the context ends.

    Where a network has batch norm, its statistics are those of up to 512 of the pictures, drawn by the seed. Statistics of a pretraining
    are those of pictures with holes, and a random start has none.

    Args:
        pictures: the set.
        numbers: int64 (n,), numbers of the pictures to take, ascending.
        transform: function that makes float32 (1, 3, side, side) of a picture.
        sources: networks.
        layers: names of their layers.
        folder: folder of the files.
        seed: seed of the draw.
        device: device of the networks.
        report: called with a line for a person now and then.

    Raises:
        ProbeError: the files would not fit the disk.
        EncoderInvalid: no layer of that name.
    """
    tables: dict[tuple[str, str], FeatureTable] = {}
    rows: list[int] = []
    damaged: list[int] = []
    with ExitStack() as stack:
        for source in sources:
            source.network.to(device)
        if any(isinstance(each, nn.BatchNorm2d | GroupedBatchNorm2d) for source in sources for each in source.network.modules()):
            few = np.sort(np.random.default_rng(seed).permutation(numbers)[:_STATISTICS_PICTURES])
            clean = [batch.inputs.to(device) for batch in batches(pictures, few.tolist(), transform, BATCH) if batch.numbers]
            for source in sources:
                stack.enter_context(recomputed_statistics(source.network, clean))
            del clean
        try:
            for batch in batches(pictures, numbers.tolist(), transform, BATCH):
                damaged += batch.damaged
                if not batch.numbers:
                    continue
                with torch.inference_mode():
                    found = _features(batch.inputs.to(device), sources, layers)
                if not tables:
                    _refuse_full_disk(folder, len(numbers), sum(each.shape[1] for each in found.values()))
                    tables |= {key: FeatureTable(folder / f"{place}.f32", each.shape[1]) for place, (key, each) in enumerate(found.items())}
                for key, values in found.items():
                    tables[key].append(values.float().cpu().numpy())
                rows += batch.numbers
                report(f"features of {len(rows) + len(damaged):,} of {counted(len(numbers), 'picture')}")
            yield Extracted({key: table.finish() for key, table in tables.items()}, np.array(rows, np.int64), tuple(damaged))
        finally:
            for table in tables.values():
                table.delete()


def _features(inputs: Tensor, sources: Sequence[Source], layers: Sequence[str]) -> dict[tuple[str, str], Tensor]:
    found = {
        (source.name, layer): pooled(outputs)
        for source in sources
        for layer, outputs in layer_outputs(source.network, inputs, layers).items()
    }
    return found | {(name, ""): adaptive_avg_pool2d(inputs, side).flatten(1) for name, side in RIVALS.items()}


def _refuse_full_disk(folder: Path, pictures: int, values: int) -> None:
    needed, free = 4 * pictures * values, shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise ProbeError(
            f"{folder}: the features of {counted(pictures, 'picture takes', 'pictures take')} {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free. Name another folder with --scratch, fewer --layers, or a --limit of pictures of a class"
        )
