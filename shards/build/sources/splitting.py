"""The splits of a source: the pictures of the split that was asked for, and the refusal to mix several unasked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.errors import SourceError
from shards.layout import ALL, Splits, mixture, refusal, wanted_kind


class PictureSplits:
    """The splits of pictures, by the folders that the pictures lie in.

    Args:
        names: names of all pictures.
        wanted: split to take, `all` for all of them together; None takes all and refuses a mixture.
        source: name of the source in errors.

    Attributes:
        taken: bool (names,), True for the pictures of the wanted split.
        left_out: number of the other pictures, by their split.

    Raises:
        SourceError: no folder is named after the wanted split.
    """

    def __init__(self, names: Sequence[bytes], wanted: str | None, source: str) -> None:
        self._source, self._wanted = source, wanted
        folders = {name.rpartition(b"/")[0]: "" for name in names}
        readable = {folder: folder.decode("utf-8", "surrogateescape") for folder in folders}
        splits = Splits(readable.values(), alone=wanted is not None)
        self._of = {folder: splits.of(text) for folder, text in readable.items()}
        kinds = [self._kind(name) for name in names]
        self._counts = Counter(kinds)
        kind = wanted_kind(wanted) if wanted is not None else ALL
        if wanted is not None and kind not in {*splits.kinds, ALL}:
            found = mixture(self._counts.items()) if splits.kinds else "no folder is named train, val, test or the like"
            raise SourceError(f"{source}: has no split {wanted} ({found})")
        self.taken: NDArray[np.bool_] = np.array([kind in {ALL, each} for each in kinds], np.bool_)
        self.left_out = Counter(each or "outside of them" for each in kinds if kind not in {ALL, each})

    def behind(self, name: bytes) -> bytes:
        """Returns the part of a picture's name behind the folder of its split, where a split was asked for; else the whole name."""
        place = self._of[name.rpartition(b"/")[0]][1] if self._wanted is not None else ""
        return name[len(place.encode("utf-8", "surrogateescape")) + 1 :] if place else name

    def refuse_mixture(self) -> None:
        """Raises SourceError if no split was asked for and the pictures are of several."""
        if self._wanted is None and len(self._counts) > 1:
            raise SourceError(f"{self._source}: {refusal(self._counts, 'pictures')}")

    def _kind(self, name: bytes) -> str:
        return self._of[name.rpartition(b"/")[0]][0]
