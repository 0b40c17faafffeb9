"""The splits of a source: the pictures of the split that was asked for, and the refusal to mix several unasked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

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
        self._kinds = kinds = [self._kind(name) for name in names]
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

    def class_rule(self, names: Sequence[bytes]) -> Callable[[bytes], bytes] | None:
        """Returns the rule that gives the class of each picture by its name; None where folders give no classes.

        The class is the first folder behind the split, as in `train/cat`. Where a picture lies right in the folder of a split, it is
        the first folder of all, as in `cat/train`, or where folders beside the splits have other names and are therefore classes too.

        Args:
            names: names of the taken pictures.
        """
        behind = {_first_folder(self.behind(name)) for name in names}
        if b"" not in behind:
            return (lambda name: _first_folder(self.behind(name))) if len(behind) > 1 else None
        first = {_first_folder(name) for name in names}
        splits = {place.encode("utf-8", "surrogateescape") for _, place in self._of.values()}
        return _first_folder if b"" not in first and len(first) > 1 and not first <= splits else None

    def refuse_mixture(self, labels: NDArray[np.int32] | None) -> None:
        """Refuses to mix splits unasked.

        Args:
            labels: int32 (names,), labels by a pattern that a person gave, which asks for the splits where it labels each one
                differently, as '^([^/]+)/' does; None without a pattern.

        Raises:
            SourceError: no split was asked for, and the pictures are of several.
        """
        if self._wanted is not None or len(self._counts) < 2:
            return
        if labels is not None and len(set(zip(self._kinds, labels.tolist(), strict=True))) == len(set(labels.tolist())):
            return
        raise SourceError(
            f"{self._source}: {refusal(self._counts, 'pictures')}; if each first folder is a class: --split all --label-pattern '^([^/]+)/'"
        )

    def _kind(self, name: bytes) -> str:
        return self._of[name.rpartition(b"/")[0]][0]


def _first_folder(name: bytes) -> bytes:
    """Returns the first folder of a name; an empty text for a name without one."""
    head, slash, _ = name.partition(b"/")
    return head if slash else b""
