"""Listings: the pictures of a source as columns of 32 bytes per picture and its name, so that tens of millions fit in memory.

Sorting a listing takes about 300 bytes per picture for a moment: 4 GB for ImageNet-21k's 14 million.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.build.sources.splitting import PictureSplits
from shards.counting import counted
from shards.dataset.index import PICTURE_EXTENSIONS
from shards.errors import SourceError
from shards.layout import left_out_part, shown_left_out
from shards.tar.places import command_to_index

LabelRule = Literal["folder", "none"]
_IN_PLACE = -1  # container of a picture that is a file under its own name
_NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: bytes [offset, offset + length) of the object `path` below the listing's URL. `label_id` is -1 without a label."""

    name: str
    label: str | None
    label_id: int
    path: str
    offset: int
    length: int


@dataclass(frozen=True)
class Listing:
    """The pictures of a source, sorted by name.

    Attributes:
        url: URL of the folder that paths are relative to.
        classes: label names, sorted; an entry's `label_id` is an index into them. Empty where labels are unknown.
        containers: objects that hold pictures under other names than their own, such as tars.
        other: number of files that are no pictures, by extension.
        excluded: number of pictures that no include pattern matched.
        names, ends: all names joined, and the offset behind each.
        container, label, offset, length: one row per picture.
        hidden: places of the hidden and tool files and folders that were left out, sorted.
        other_splits: number of pictures that were left out because they are of other splits than the chosen one, by split.
        doubles: number of pictures whose name differs from another's in the extension alone, such as a mask beside each photograph.
    """

    url: str
    classes: tuple[str, ...]
    containers: tuple[str, ...]
    other: Counter[str]
    excluded: int
    names: bytes
    ends: NDArray[np.int64]
    container: NDArray[np.int32]
    label: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    hidden: tuple[str, ...] = ()
    other_splits: Counter[str] = field(default_factory=Counter)
    doubles: int = 0

    def __len__(self) -> int:
        return len(self.container)

    def __getitem__(self, place: int) -> Entry:
        start = int(self.ends[place - 1]) if place else 0
        name = self.names[start : int(self.ends[place])].decode("utf-8", "surrogateescape")
        container, label = int(self.container[place]), int(self.label[place])
        return Entry(
            name,
            self.classes[label] if label != _NO_LABEL else None,
            label,
            name if container == _IN_PLACE else self.containers[container],
            int(self.offset[place]),
            int(self.length[place]),
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[place] for place in range(len(self)))

    @property
    def folder_around(self) -> str:
        """Name of the folder that holds all pictures where they lie in folders of it, which are then no classes; else an empty text."""
        first, last = self[0].name, self[len(self) - 1].name
        head = first.partition("/")[0]
        return head if last.startswith(f"{head}/") and first.count("/") > 1 and last.count("/") > 1 else ""

    @property
    def total_bytes(self) -> int:
        """Bytes of all pictures."""
        return int(self.length.sum())

    def digest(self) -> bytes:
        """Returns the sha256 over every field of all entries."""
        table = hashlib.sha256(repr((self.classes, self.containers)).encode("utf-8", "surrogateescape"))
        table.update(self.names)
        for column in (self.ends, self.container, self.label, self.offset, self.length):
            table.update(column.astype(column.dtype.newbyteorder("<"), copy=False).data)
        return table.digest()


class ListingBuilder:
    """Takes the files of a source in any order and makes the listing of its pictures.

    Args:
        source: name of the source in errors.
        include: patterns of names, as in `open_source`.
        needs_labels: as in `open_source`.
    """

    def __init__(self, source: str, include: Sequence[str] = (), needs_labels: bool = False) -> None:
        self.source = source
        self.index_command = command_to_index(source)
        self.unlabelled = "" if needs_labels else "; or store their pictures anew, without labels: --labels none"
        self._included = re.compile("|".join(fnmatch.translate(pattern) for pattern in include)) if include else None
        self._names, self._ends = bytearray(), array("q")
        self._container, self._offset, self._length = array("i"), array("q"), array("q")
        self._containers: list[str] = []
        self._other: Counter[str] = Counter()
        self._excluded = 0
        self._hidden: set[str] = set()
        self._no_classes = ""

    @property
    def pictures(self) -> int:
        """Number of pictures so far, with those that no include pattern matched."""
        return len(self._ends) + self._excluded

    def open_container(self, path: str) -> int:
        """Announces an object that holds pictures under other names than its own, such as a tar, and returns its number for `add`."""
        self._containers.append(path)
        return len(self._containers) - 1

    def add(self, name: str, length: int, container: int = _IN_PLACE, offset: int = 0) -> None:
        """Adds one file. A file that is no picture by its extension is only counted, as is one that is hidden or in a tool's folder."""
        extension = extension_of(name)
        if self.leaves_out(name):
            return
        if extension not in PICTURE_EXTENSIONS:
            self.pass_over(f".{extension}" if extension else "without extension")
        elif self._included is not None and not self._included.match(name):
            self._excluded += 1
        else:
            self._names += name.encode("utf-8", "surrogateescape")
            self._ends.append(len(self._names))
            self._container.append(container)
            self._offset.append(offset)
            self._length.append(length)

    def pass_over(self, kind: str) -> None:
        """Counts a file that is left out."""
        self._other[kind] += 1

    def leaves_out(self, name: str) -> bool:
        """Returns whether a file or folder is left out because a part of its name is hidden or a tool's; such parts are counted."""
        part = left_out_part(name)
        if part:
            self._hidden.add(part)
        return bool(part)

    def refuse_classes(self, reason: str) -> None:
        """Makes `finish` raise, with the first reason given, instead of taking the first folders of names for classes."""
        self._no_classes = self._no_classes or reason

    def finish(self, url: str, labels: LabelRule, label_pattern: str | None, split: str | None = None) -> Listing:
        """Sorts, labels and checks the pictures, and returns the listing. The arguments are those of `open_source`.

        Raises:
            SourceError: there are no pictures, a name comes twice, a name lacks the label that the pattern asks for, or splits would be
                mixed unasked.
        """
        if self._no_classes and labels == "folder" and label_pattern is None:
            raise SourceError(self._no_classes)
        if not self._ends:
            seen = ", ".join(f"{kind} {count}" for kind, count in self._other.most_common(5)) or "no files at all"
            hint = f"; {counted(self._excluded, 'picture matches', 'pictures match')} no --include pattern" if self._excluded else ""
            hint += f"; {shown_left_out(self._hidden)}" if self._hidden else ""
            raise SourceError(
                f"{self.source}: no pictures to build from (found: {seen}{hint}). Pictures end in {_listed(PICTURE_EXTENSIONS)}"
            )
        blob, ends = bytes(self._names), self._ends
        names = [blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        names = [names[place] for place in order]
        doubles = 0
        for before, after in pairwise(names):
            doubles += before.rpartition(b".")[0] == after.rpartition(b".")[0]
            if before == after:
                raise SourceError(f"{self.source}: {after.decode('utf-8', 'replace')} is there twice. Unpack it and build from the folder")
        splits = PictureSplits(names, split, self.source)
        order, names = order[splits.taken], [name for name, taken in zip(names, splits.taken, strict=True) if taken]
        classes, label = _label(names, self._rule(names, labels, label_pattern, splits))
        splits.refuse_mixture(None if label_pattern is None else label)
        return Listing(
            url,
            classes,
            tuple(self._containers),
            self._other,
            self._excluded,
            b"".join(names),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.frombuffer(self._container, dtype=np.int32)[order],
            label,
            np.frombuffer(self._offset, dtype=np.int64)[order],
            np.frombuffer(self._length, dtype=np.int64)[order],
            tuple(sorted(self._hidden)),
            splits.left_out,
            doubles,
        )

    def _rule(
        self, names: list[bytes], labels: LabelRule, label_pattern: str | None, splits: PictureSplits
    ) -> Callable[[bytes], bytes] | None:
        if label_pattern is not None:
            return self._by_pattern(label_pattern)
        # ImageFolder's rule: the first folder is the class, which makes sense only if there are several
        return None if labels == "none" else splits.class_rule(names)

    def _by_pattern(self, text: str) -> Callable[[bytes], bytes]:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise SourceError(f"the label pattern {text!r} is no regular expression: {error}") from error
        if pattern.groups != 1:
            raise SourceError(
                f"the label pattern {text!r} has {counted(pattern.groups, 'group')}; it needs one, around the label: '^([^/]+)/'"
            )

        def rule(name: bytes) -> bytes:
            readable = name.decode("utf-8", "surrogateescape")
            found = pattern.search(readable)
            if found is None or not found[1]:
                raise SourceError(
                    f"{self.source}: the label pattern {text!r} finds nothing in the name {readable}. "
                    "Correct it, or leave such pictures out with --include"
                )
            return found[1].encode("utf-8", "surrogateescape")

        return rule


def extension_of(name: str) -> str:
    """Returns the text behind the last dot of a file's name, in lower case; empty without a dot."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def _label(names: list[bytes], rule: Callable[[bytes], bytes] | None) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    if rule is None:
        return (), np.full(len(names), _NO_LABEL, dtype=np.int32)
    numbers: dict[bytes, int] = {}
    found = np.fromiter((numbers.setdefault(rule(name), len(numbers)) for name in names), dtype=np.int32, count=len(names))
    ranked = sorted(numbers)
    rank = np.empty(len(ranked), dtype=np.int32)
    rank[[numbers[label] for label in ranked]] = np.arange(len(ranked), dtype=np.int32)
    return tuple(label.decode("utf-8", "surrogateescape") for label in ranked), rank[found]


def _listed(extensions: Iterable[str]) -> str:
    return ", ".join(f".{extension}" for extension in sorted(extensions))
