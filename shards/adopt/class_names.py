"""Class names of tars whose labels are numbers: a file of names beside the tars, as their authors like to add one.

In: the folder of the tars and the largest label. Out: the names, or why a file of names is no use. The file may be a text with a name a
line (line 0 is class 0; each line may begin or end with its number), or JSON: a list of names, `{"0": "cat"}` or `{"cat": 0}`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.adopt.records import Done, read_labels
from shards.counting import counted
from shards.dataset.index import PICTURE_EXTENSIONS
from shards.dataset.lookalike import kind_of
from shards.errors import StoreError
from shards.layout import split_in
from shards.store import Options, Store
from shards.urls import split

_STEMS = ("classnames", "class_names", "classes", "labels")
NAMES = tuple(f"{stem}.{ending}" for stem, ending in itertools.product(_STEMS, ("txt", "json")))
"""Names of such files; the first that is there is read."""
_MOST_BYTES = 16 << 20
_PAGE = "<"  # the page of a web server that has no such file
_LONGEST = 200  # characters of a name
T = TypeVar("T")
_NUMBER_AND_NAME = re.compile(r"(?P<number>\d+)[\s:,;=]+(?P<name>.+)")
_NAME_AND_NUMBER = re.compile(r"(?P<name>.*?\S)[\s:,;=]+(?P<number>\d+),?")


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


class _Page(_NoNames):
    """The reason for a page, which some web servers send for every name."""


def find_labels(store: Store, done: Sequence[Done], url: str, options: Options) -> Labels:
    """Counts the labels of tars, and looks for the names of their classes.

    Args:
        store: store of the indexes.
        done: indexed tars.
        url: folder of the tars.
        options: fsspec options of its store.

    Raises:
        ManifestMismatch: an index is damaged.
        StoreError: as `find_class_names`.
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

    Raises:
        StoreError: the store can't be read. A name that the store may not tell of is passed over.
    """
    above, last = split(url)
    page = ""
    for folder in (url, above) if split_in(last) is not None and not above.endswith(":/") else (url,):
        store = Store(folder, options)
        for name in NAMES:
            try:
                size = store.size(name)
                data = store.read(name) if size is not None and size <= _MOST_BYTES else None
            except StoreError as error:
                if not isinstance(error.__cause__, PermissionError | FileNotFoundError):
                    raise
                continue  # some stores tell nobody what is not there
            if data is None:
                continue
            shown = store.describe(name)
            try:
                found = _fitting(_decoded(data, name), largest)
            except _Page as error:
                page = page or f"class names: none, because {shown} {error}"
                continue
            except _NoNames as error:
                return (), f"class names: none, because {shown} {error}"
            return found, f"class names: {len(found):,} from {shown}"
    return (), page


def _decoded(data: bytes, name: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith(_PAGE):
            raise _Page("is a page, not a file of names")
        if kind_of(data):
            raise ValueError("another file")
        return _of_json(json.loads(text, object_pairs_hook=_table)) if name.endswith(".json") else _of_lines(text.strip().splitlines())
    except (ValueError, TypeError, RecursionError):
        raise _NoNames("is neither a list of names nor a table of names and numbers") from None


def _of_lines(lines: list[str]) -> list[str]:
    names = [line.strip() for line in itertools.dropwhile(lambda line: line.lstrip().startswith("#"), lines)]  # behind the comments
    first = _numbered(_NUMBER_AND_NAME, names)
    if first:
        return _in_order(first)
    last = _numbered(_NAME_AND_NUMBER, names)
    numbers = {number for number, _ in last}
    # numbers also belong to names, as in `Boeing 737`, or in `class 0`, `class 1`
    if last and min(numbers) <= 1 and max(numbers) <= len(last) and len({name for _, name in last}) > 1:
        return _in_order(last)
    return names


def _numbered(line: re.Pattern[str], lines: list[str]) -> list[tuple[int, str]]:
    """Returns number and name in each line; nothing if one of the lines is another."""
    found = [match for match in map(line.fullmatch, lines) if match is not None]
    return [(int(match["number"]), match["name"].strip(" '\",")) for match in found] if len(found) == len(lines) else []


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the dict of a JSON object, whose keys must differ: json would keep the last of equal ones."""
    _refuse_equal([key for key, _ in pairs])
    return dict(pairs)


def _of_json(table: Any) -> list[str]:
    if isinstance(table, dict):
        numbers = (
            [(number, name) for name, number in table.items()] if all(type(value) is int for value in table.values()) else table.items()
        )
        ordered = _in_order([(int(number), name) for number, name in numbers])
    elif isinstance(table, list):
        ordered = table
    else:
        raise TypeError("no list")
    names = [_text(name) for name in ordered]
    twice = {name for name, count in Counter(names).items() if count > 1}  # ImageNet has two classes `crane`, told apart by their ids
    return [
        f"{name} ({entry[0]})" if name in twice and isinstance(entry, list) else name for name, entry in zip(names, ordered, strict=True)
    ]


def _text(name: Any) -> str:
    """Returns a name; of a list, as in ImageNet's `["n01440764", "tench"]`, its last entry."""
    text = name[-1] if isinstance(name, list) and name else name
    if not isinstance(text, str):
        raise TypeError("no name")
    return text


def _in_order(names: list[tuple[int, T]]) -> list[T]:
    table = dict(names)
    _refuse_equal([number for number, _ in names], "number")
    if sorted(table) != list(range(len(table))):
        raise _NoNames("does not number its names from 0 without a gap")
    return [table[number] for number in range(len(table))]


def _refuse_equal(entries: Sequence[object], what: str = "name") -> None:
    twice = next((entry for entry, count in Counter(entries).items() if count > 1), None)
    if twice is not None:
        raise _NoNames(f"has the {what} {repr(twice)[:_LONGEST]} twice")


def _fitting(names: list[str], largest: int) -> tuple[str, ...]:
    """Returns the names if they can be those of the classes: a list of labels, one a sample, often has the same name."""
    if len(names) <= largest:
        raise _NoNames(f"names {counted(len(names), 'class')}, and the labels go up to {largest:,}")
    if not all(0 < len(name) <= _LONGEST for name in names) or all(name.lstrip("-").isdecimal() for name in names):
        raise _NoNames("holds lines that are no names")
    if any(name.lower().endswith(f".{extension}") for name in names for extension in PICTURE_EXTENSIONS):
        raise _NoNames("names pictures, not classes")
    _refuse_equal(names)
    return tuple(names)
