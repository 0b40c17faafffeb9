"""The nearest training picture of every picture, over parts of the training set that ranks search on their own."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.inpainting.fills import Describer, merge, nearest
from pipeline.evaluation.inpainting.judging import Seconds
from pipeline.evaluation.inpainting.parts import InpaintingError, Part, plain, read_part
from pipeline.evaluation.inpainting.training_pictures import TrainingPictures
from pipeline.evaluation.part_folder import PartFolder
from pipeline.stream.read.samples import BadSample

Query = tuple[NDArray[np.int16], NDArray[np.float32] | None]
Found = tuple[NDArray[np.float64], NDArray[np.int64]]


class Search:
    """The search for nearest neighbours. Any number of threads may use it at once.

    Args:
        pictures: parts of the pictures to judge on, with their descriptions.
        searched: parts of the training set.
        training: pictures of the training set.
        describers: descriptions.
        device: device that searches.
        check: called often; an error that it raises ends the work.
    """

    def __init__(
        self,
        pictures: PartFolder,
        searched: PartFolder,
        training: TrainingPictures,
        describers: Sequence[Describer],
        device: torch.device,
        check: Callable[[], None],
    ) -> None:
        self._pictures, self._searched, self._training = pictures, searched, training
        self._describers, self._device, self._check = describers, device, check
        self._lock = threading.Lock()
        self._queries: dict[str, Query] | None = None
        self._found: dict[str, dict[int, int]] | None = None

    def search(self, unit: Unit) -> Part:
        """Finds the nearest of a unit's training pictures for every picture; an empty part where none of them can be read."""
        queries, seconds = self._asked(), Seconds()
        ids, bad, vectors = list[int](), list[BadSample](), defaultdict[str, list[NDArray[np.int16]]](list)
        batches = self._training.read(unit)
        while True:
            self._check()
            with seconds.of("decode (training)"):
                batch = next(batches, None)
            if batch is None:
                break
            ids += batch[1]
            bad += batch[2]
            for describer in self._describers if len(batch[0]) else ():
                with seconds.of(describer.name):
                    vectors[describer.name].append(describer.stored(batch[0]))
        arrays: dict[str, NDArray[Any]] = {}
        for name, stored in vectors.items():
            self._check()
            with seconds.of(name):
                distances, places = nearest(*queries[name], np.concatenate(stored), 0, self._device)
            arrays[f"{name}/distances"], arrays[f"{name}/ids"] = distances, np.array(ids, np.int64)[places]
        return Part(arrays, dict(seconds), [plain(each) for each in bad])

    def neighbours(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Reads the nearest training pictures.

        Args:
            name: name of the description.
            numbers: int64 (n,), numbers of the pictures to judge on.

        Returns:
            uint8 (n, H, W, 3).

        Raises:
            InpaintingError: no training picture could be read.
        """
        found = self._all_found()[name]
        ids = [found[int(number)] for number in numbers]
        different = sorted(set(ids))
        pictures = self._training.read_some(different)
        return pictures[[different.index(each) for each in ids]]

    def _asked(self) -> dict[str, Query]:
        """Descriptions of all pictures, by the name of the description, read once."""
        with self._lock:
            if self._queries is None:
                parts = [read_part(self._pictures.part(unit), unit, self._pictures.facts) for unit in self._pictures.units]
                read = [part.arrays for part in parts if "numbers" in part.arrays]
                self._queries = {}
                for describer in self._describers:
                    values, weights = (f"query/{describer.name}/{kind}" for kind in ("values", "weights"))
                    weighed = np.concatenate([part[weights] for part in read]) if weights in read[0] else None
                    self._queries[describer.name] = np.concatenate([part[values] for part in read]), weighed
            return self._queries

    def _all_found(self) -> dict[str, dict[int, int]]:
        """The id of the nearest training picture by the number of a picture, by the name of the description, read once."""
        with self._lock:
            if self._found is None:
                units = self._pictures.units
                wanted = [read_part(self._pictures.part(unit), unit, self._pictures.facts).arrays.get("numbers") for unit in units]
                numbers = np.concatenate([each for each in wanted if each is not None]).tolist()
                best: dict[str, Found] = {}
                for unit in self._searched.units:
                    arrays = read_part(self._searched.part(unit), unit, self._searched.facts).arrays
                    for name in {key.rpartition("/")[0] for key in arrays}:
                        found = arrays[f"{name}/distances"], arrays[f"{name}/ids"]
                        best[name] = merge(best[name], found) if name in best else found
                if not best:
                    raise InpaintingError("train.shards: none of its pictures can be read, so there is no patch to paste")
                self._found = {name: dict(zip(numbers, ids.tolist(), strict=True)) for name, (_, ids) in best.items()}
            return self._found
