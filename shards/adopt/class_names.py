"""Class names of tars whose labels are numbers: a file of names beside the tars, as their authors like to add one.

In: the folder of the tars and the largest label. Out: the names, or why a file of names is no use. The file may be a text with a name a
line (line 0 is class 0; each line may begin with its number), or JSON: a list of names, `{"0": "cat"}` or `{"cat": 0}`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shards.adopt.records import Done, read_labels
from shards.counting import counted
from shards.dataset.index import PICTURE_EXTENSIONS
from shards.errors import StoreError
from shards.layout import split_in
from shards.store import Options, Store
from shards.urls import split

_STEMS = ("classnames", "class_names", "classes", "labels")
NAMES = tuple(f"{stem}.{ending}" for stem, ending in itertools.product(_STEMS, ("txt", "json")))
"""Names of such files; the first that is there is read."""
_MOST_BYTES = 16 << 20
_NO_FILES = ("<", "version https://git-lfs")  # the page of a web server that has no such file, and what stands for a file in Git LFS
_LONGEST = 200  # characters of a name
_NUMBER_AND_NAME = re.compile(r"(\d+)[\s:,;=]+(.+)")


@dataclass(frozen=True)
class Labels:
    """The labels of indexed tars.

    Attributes:
        samples: number of samples that have a label.
        names: class names; a label is an index into them. Empty where there are none.
        note: line for people about the names; empty where no file of names was found.
    """

    samples: int = 0
    names: tuple[str, ...] = ()
    note: str = ""


class _NoNames(Exception):
    """The reason why a file gives no class names."""


def find_labels(store: Store, done: Sequence[Done], url: str, options: Options) -> Labels:
    """Counts the labels of tars, and looks for the names of their classes.

    Args:
        store: store of the indexes.
        done: indexed tars.
        url: folder of the tars.
        options: fsspec options of its store.

    Raises:
        ManifestMismatch: an index is damaged.
    """
    labels = read_labels(store, done)
    largest = max((int(each.max(initial=-1)) for each in labels), default=-1)
    names, note = find_class_names(url, options, largest) if largest >= 0 else ((), "")
    return Labels(sum(int((each >= 0).sum()) for each in labels), names, note)


def find_class_names(url: str, options: Options, largest: int) -> tuple[tuple[str, ...], str]:
    """Looks for class names beside tars; for those of a split also one folder up.

    Args:
        url: folder of the tars.
        options: fsspec options of its store.
        largest: largest label of the samples.

    Returns:
        Class names, empty if there are none to use; and a line for people, empty where no file is there.
    """
    above, last = split(url)
    for folder in (url, above) if split_in(last) is not None and not above.endswith(":/") else (url,):
        store = Store(folder, options)
        for name in NAMES:
            try:
                size = store.size(name)
                data = store.read(name) if size is not None and size <= _MOST_BYTES else None
            except StoreError:  # some stores tell nobody what is not there
                continue
            if data is None:
                continue
            shown = store.describe(name)
            try:
                found = _fitting(_decoded(data, name), largest)
            except _NoNames as error:
                return (), f"class names: none, because {shown} {error}"
            return found, f"class names: {len(found):,} from {shown}"
    return (), ""


def _decoded(data: bytes, name: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith(_NO_FILES):
            raise ValueError("another file")
        return _of_json(json.loads(text)) if name.endswith(".json") else _of_lines(text.strip().splitlines())
    except (ValueError, TypeError, RecursionError):
        raise _NoNames("is neither a list of names nor a table of names and numbers") from None


def _of_lines(lines: list[str]) -> list[str]:
    numbered = [_NUMBER_AND_NAME.fullmatch(line.strip()) for line in lines]
    if numbered and all(numbered):
        return _in_order({int(found[1]): found[2].strip(" '\",") for found in numbered if found})
    return [line.strip() for line in lines]


def _of_json(table: Any) -> list[str]:
    if isinstance(table, dict):
        numbers = {number: name for name, number in table.items()} if all(type(value) is int for value in table.values()) else table
        return _in_order({int(number): _text(name) for number, name in numbers.items()})
    if not isinstance(table, list):
        raise TypeError("no list")
    return [_text(name) for name in table]


def _text(name: Any) -> str:
    """Returns a name; of a list, as in ImageNet's `["n01440764", "tench"]`, its last entry."""
    text = name[-1] if isinstance(name, list) and name else name
    if not isinstance(text, str):
        raise TypeError("no name")
    return text


def _in_order(names: dict[int, str]) -> list[str]:
    if sorted(names) != list(range(len(names))):
        raise _NoNames("does not number its names from 0 without a gap")
    return [names[number] for number in range(len(names))]


def _fitting(names: list[str], largest: int) -> tuple[str, ...]:
    """Returns the names if they can be those of the classes: a list of labels, one a sample, often has the same name."""
    if len(names) <= largest:
        raise _NoNames(f"names {counted(len(names), 'class')}, and the labels go up to {largest:,}")
    if not all(0 < len(name) <= _LONGEST for name in names) or all(name.lstrip("-").isdecimal() for name in names):
        raise _NoNames("holds lines that are no names")
    if any(name.lower().endswith(f".{extension}") for name in names for extension in PICTURE_EXTENSIONS):
        raise _NoNames("names pictures, not classes")
    return tuple(names)
