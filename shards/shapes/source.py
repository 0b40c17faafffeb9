"""The label pictures of a source: PASCAL VOC's `SegmentationObject` with its lists, or every PNG below any other folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shards.counting import counted
from shards.errors import ShapesError
from shards.layout import left_out_part
from shards.store import Options, Store
from shards.urls import redacted

OBJECTS, LISTS = "SegmentationObject", "ImageSets/Segmentation"
_SHOWN = 5


@dataclass(frozen=True)
class LabelPictures:
    """The label pictures of a source.

    Attributes:
        store: folder of the source.
        kind: `voc` or `folder`, as in `shards.shapes.bank.Provenance`.
        files: name below the folder and bytes of each picture, sorted by name; never empty. A length that the store does not tell is 0.
        other: number of files that are no PNG, by extension.
        hidden: hidden files and folders, and those of tools, which are left out.
    """

    store: Store
    kind: Literal["voc", "folder"]
    files: Sequence[tuple[str, int]]
    other: Counter[str]
    hidden: frozenset[str]


def find_pictures(url: str, options: Options | None = None, split: str | None = None) -> LabelPictures:
    """Lists the label pictures of a source.

    Args:
        url: URL or path of a folder: one in the layout of PASCAL VOC, or any folder of PNGs.
        options: fsspec options of the store.
        split: list of `ImageSets/Segmentation` to take, e.g. `train`; None takes every picture.

    Raises:
        ShapesError: no such folder, no PNG in it, no such list, or a picture of the list is missing.
        StoreError: the store can't be read.
    """
    store = Store(url, options)
    shown = redacted(url)
    if store.local is not None and not store.local.is_dir():
        trouble = "is a file, and label pictures are read from a folder. Unpack it" if store.local.exists() else "there is no such folder"
        raise ShapesError(f"{shown}: {trouble}")
    listed = store.list(OBJECTS, strict=True)
    kind: Literal["voc", "folder"] = "voc" if listed else "folder"
    if not listed:
        listed = store.list(strict=True)
    hidden = frozenset(filter(None, (left_out_part(name) for name, _ in listed)))
    seen = [(name, size) for name, size in listed if not left_out_part(name)]
    if inner := sorted({name.partition(f"/{OBJECTS}/")[0] for name, _ in seen if f"/{OBJECTS}/" in name}):
        raise ShapesError(
            f"{shown}: holds the layout of PASCAL VOC in a folder below. Give that folder: {redacted(f'{store.url}/{inner[0]}')}"
        )
    files = [(name, size) for name, size in seen if name.lower().endswith(".png")]
    other = Counter(_extension(name) for name, _ in seen if not name.lower().endswith(".png"))
    if not files:
        raise ShapesError(f"{shown}: no label pictures (PNG) in this folder. Give PASCAL VOC's folder VOC2012, or a folder of label PNGs")
    if split is not None:
        if kind != "voc":
            raise ShapesError(f"{shown}: has no {OBJECTS} and no lists, so that --split can't choose. Leave --split out")
        files = _chosen(store, files, split)
    return LabelPictures(store, kind, files, other, hidden)


def _extension(name: str) -> str:
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2].lower()}" if "." in last else "no extension"


def _chosen(store: Store, files: Sequence[tuple[str, int]], split: str) -> list[tuple[str, int]]:
    """Takes the pictures of a list: a text file with one name, without folder and extension, in each line."""
    place = f"{LISTS}/{split}.txt"
    data = store.whole(place)
    if data is None:
        there = [name[len(LISTS) + 1 : -len(".txt")] for name, _ in store.list(LISTS) if name.endswith(".txt")]
        raise ShapesError(f"{store.describe(place)}: there is no such list. Lists that are there: {', '.join(there) or 'none'}")
    wanted = sorted({words[0] for line in data.decode(errors="replace").splitlines() if (words := line.split())})
    if not wanted:
        raise ShapesError(f"{store.describe(place)}: the list is empty")
    sizes = dict(files)
    names = [f"{OBJECTS}/{name}.png" for name in wanted]
    if missing := [name for name in names if name not in sizes]:
        more = ", ..." if len(missing) > _SHOWN else ""
        raise ShapesError(
            f"{store.describe(place)}: lists {counted(len(names), 'picture')}, {len(missing):,} of which are not there: "
            f"{', '.join(missing[:_SHOWN])}{more}. Copy them here, or leave --split out"
        )
    return [(name, sizes[name]) for name in names]
