"""Pictures with holes, filled by every method, and the figures of the fills: the work on one unit of the table."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.inpainting.fills import Describer
from pipeline.evaluation.inpainting.lpips import Lpips
from pipeline.evaluation.inpainting.method import Holes, Method
from pipeline.evaluation.inpainting.metrics import Truth, paste
from pipeline.evaluation.inpainting.parts import InpaintingError, Part, plain
from pipeline.evaluation.inpainting.settings import NETWORK
from pipeline.stream.fixed import FixedChoice
from pipeline.stream.read.samples import BadSample
from shards.local_files import whole_file

_HIDDEN = 127  # value of dropped pixels in what methods see
_TOGETHER = 8  # pictures of a fill without a network, between two looks at the signals


class Seconds(defaultdict[str, float]):
    """Seconds of each kind of work."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Adds the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self[kind] += time.perf_counter() - began


@dataclass(frozen=True)
class Judged:
    """Readable pictures of a batch, as they are and with their holes.

    Attributes:
        pictures: uint8 (n, H, W, 3).
        holes: what the methods see.
    """

    pictures: NDArray[np.uint8]
    holes: Holes

    def __len__(self) -> int:
        return len(self.pictures)


class Judge:
    """Fills pictures and compares the fills with the truth. Any number of threads may use it at once.

    Args:
        choice: pictures to judge on.
        batch: pictures that pass through the network at once.
        grid: pictures, from the first, whose fills are kept for the grid.
        lpips: LPIPS; None leaves it out.
        device: device of LPIPS.
        saved: folder for fills as PNGs; None writes none.
        check: called often; an error that it raises ends the work.
    """

    def __init__(
        self,
        choice: FixedChoice,
        batch: int,
        grid: int,
        lpips: Lpips | None,
        device: torch.device,
        saved: Path | None,
        check: Callable[[], None],
    ) -> None:
        self._choice, self._batch, self._grid, self._lpips, self._device = choice, batch, grid, lpips, device
        self._saved, self._check = saved, check

    def fills(self, unit: Unit, methods: Sequence[Method], describers: Sequence[Describer]) -> Part:
        """Judges the fills of one picture at a time, and describes the pictures for the search of their neighbours."""
        sheet, seconds = _Sheet(), Seconds()
        for batch in self._batches(unit, sheet, seconds):
            self._keep_truth(batch, sheet)
            seen = self._truths(batch, seconds)
            for method in methods:
                together = self._batch if method.name == NETWORK else _TOGETHER
                with seconds.of("network" if method.name == NETWORK else method.name):
                    filled = np.concatenate([self._filled(method, part) for part in _parts(batch.holes, together)])
                self._judge(method.name, batch, filled, seen, sheet, seconds)
            for describer in describers:
                self._check()
                with seconds.of(describer.name):
                    values, weights = describer.query(batch.holes)
                sheet.add(f"query/{describer.name}/values", values)
                if weights is not None:
                    sheet.add(f"query/{describer.name}/weights", weights)
        return sheet.part(seconds)

    def pasted(self, unit: Unit, names: Sequence[str], neighbours: Callable[[str, NDArray[np.int64]], NDArray[np.uint8]]) -> Part:
        """Judges the patches of nearest neighbours.

        Args:
            unit: unit of the pictures.
            names: names of the descriptions.
            neighbours: function of a description and pictures' numbers that gives their nearest pictures, uint8 (n, H, W, 3).
        """
        sheet, seconds = _Sheet(), Seconds()
        for batch in self._batches(unit, sheet, seconds):
            seen = self._truths(batch, seconds)
            for name in names:
                with seconds.of(name):
                    found = neighbours(name, batch.holes.numbers)
                self._judge(name, batch, (found / np.float32(255)).astype(np.float32), seen, sheet, seconds)
        return sheet.part(seconds)

    def _batches(self, unit: Unit, sheet: _Sheet, seconds: Seconds) -> Iterator[Judged]:
        """Reads the pictures of a unit, and hides what is dropped; batches without a readable picture are passed over."""
        for numbers in unit.batches(self._batch):
            self._check()
            with seconds.of("decode"):
                samples, bad = self._choice.read(numbers)
            sheet.bad += sorted(bad, key=lambda each: each.sample_id)
            readable = samples.readable.numpy()
            if not readable.any():
                continue
            pictures, masks, keys = (each.numpy()[readable] for each in (samples.images, samples.masks, samples.keys))
            hidden = np.where(masks[..., None], np.uint8(_HIDDEN), pictures)
            batch = Judged(pictures, Holes(hidden, masks, keys, np.array(numbers)[readable]))
            sheet.add("numbers", batch.holes.numbers)
            yield batch

    def _filled(self, method: Method, holes: Holes) -> NDArray[np.float32]:
        self._check()
        filled = method.fill(holes)
        broken = ~np.isfinite(filled).all((1, 2, 3))
        if broken.any():
            number = int(holes.numbers[int(broken.argmax())])
            raise InpaintingError(
                f"picture {number} (sample {self._choice.sample_id(number)}): {method.title} paints values that are no numbers"
                + (". Has the training diverged?" if method.name == NETWORK else "")
            )
        return filled

    def _truths(self, batch: Judged, seconds: Seconds) -> tuple[list[Truth], list[torch.Tensor]]:
        """The pictures as figures compare them."""
        with seconds.of("figures"):
            truths = [Truth(picture, mask) for picture, mask in zip(batch.pictures, batch.holes.masks, strict=True)]
        if self._lpips is None:
            return truths, []
        with seconds.of("lpips"):
            return truths, self._lpips.features(self._tensor(batch.pictures))

    def _judge(
        self,
        name: str,
        batch: Judged,
        filled: NDArray[np.float32],
        seen: tuple[list[Truth], list[torch.Tensor]],
        sheet: _Sheet,
        seconds: Seconds,
    ) -> None:
        truths, features = seen
        with seconds.of("figures"):
            rows = np.stack([truth.measure(fill) for truth, fill in zip(truths, filled, strict=True)])
        kept = batch.holes.numbers < self._grid
        if self._lpips is not None or self._saved is not None or kept.any():
            pasted = [paste(*each) for each in zip(batch.pictures, batch.holes.masks, filled, strict=True)]
            if self._lpips is not None:
                with seconds.of("lpips"):
                    distances = self._lpips.distances(features, self._lpips.features(self._tensor(np.stack(pasted))))
                rows = np.column_stack([rows, distances.numpy()])
            sheet.add(f"shown/{name}", np.stack(pasted)[kept])
            self._save(name, batch, pasted)
        sheet.add(f"figures/{name}", rows)

    def _tensor(self, pictures: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 255

    def _keep_truth(self, batch: Judged, sheet: _Sheet) -> None:
        kept = batch.holes.numbers < self._grid
        if kept.any():
            sheet.add("shown/truth", batch.pictures[kept])
            sheet.add("shown/mask", batch.holes.masks[kept])
        self._save("truth", batch, list(batch.pictures))

    def _save(self, name: str, batch: Judged, pictures: Sequence[NDArray[np.uint8]]) -> None:
        if self._saved is None:
            return
        folder = self._saved / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in zip(batch.holes.numbers, pictures, strict=True):
            with whole_file(folder / f"{number:09d}.png", durable=False) as file:
                Image.fromarray(picture).save(file, "PNG")


class _Sheet:
    """Rows of arrays, by name, while a unit's batches are worked on."""

    def __init__(self) -> None:
        self._rows: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self.bad: list[BadSample] = []

    def add(self, name: str, rows: NDArray[Any]) -> None:
        """Adds rows to an array."""
        self._rows[name].append(rows)

    def part(self, seconds: Seconds) -> Part:
        """The result of the unit."""
        return Part({name: np.concatenate(rows) for name, rows in self._rows.items()}, dict(seconds), [plain(each) for each in self.bad])


def _parts(holes: Holes, size: int) -> Iterator[Holes]:
    """Cuts a batch into smaller ones."""
    for first in range(0, len(holes.images), size):
        some = slice(first, first + size)
        yield Holes(holes.images[some], holes.masks[some], holes.keys[some], holes.numbers[some])


def file_digest(path: Path) -> str:
    """16 hexadecimal digits of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
