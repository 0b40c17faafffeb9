"""The bank of shapes: outlines of objects in one small file, written whole or not at all and proven when it is read.

The file is a safetensors file, because that format holds numbers alone (nothing in it can run), has no compression that could unpack to
more than was read, and opens in any language. It holds three arrays: `points` int16 (P, 2), x and y in half pixels from the corner of the
object's bounding box; `vertices` int32 (C,), points of each contour; `contours` int32 (S,), contours of each shape. The only key of its
metadata, `bank`, is JSON text: `record` with the version, the digest and the provenance, and `sha256`, the digest of the record. (One key,
because safetensors writes several in any order.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from shards.counting import counted
from shards.errors import ShapesError
from shards.shapes.silhouette import Silhouette
from shards.store import Options, Store
from shards.urls import redacted, scheme, split

__all__ = ["BankMissing", "Provenance", "ShapeBank", "ShapesError", "make_bank", "read_bank", "write_bank"]

VERSION = 1
MOST_BYTES = 1 << 28
"""Longest file that is read: room for a million shapes."""
_KEY = "bank"
_TYPES = {"points": np.dtype(np.int16), "vertices": np.dtype(np.int32), "contours": np.dtype(np.int32)}
_AGAIN = "Make the bank again with python -m shards shapes, or copy it here again"


class BankMissing(ShapesError):
    """There is no file where a bank is to be read."""


@dataclass(frozen=True)
class Provenance:
    """The label pictures that a bank was traced from, and everything that was left out.

    Attributes:
        source: URL of the source without credentials.
        kind: `voc` for the layout of PASCAL VOC, `folder` for any other folder of label pictures.
        split: list of `ImageSets/Segmentation` that chose the pictures; an empty text for all.
        pictures: number of label pictures.
        pictures_without_objects: number of those without an object.
        objects: number of objects in them.
        void_pixels: number of pixels that belong to nothing.
        min_pixels: fewest pixels of an object that becomes a shape.
        left_out: number of objects that became no shape, by cause.
    """

    source: str
    kind: Literal["voc", "folder"] = "folder"
    split: str = ""
    pictures: int = 0
    pictures_without_objects: int = 0
    objects: int = 0
    void_pixels: int = 0
    min_pixels: int = 1
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ShapeBank:
    """Shapes and their origin.

    Attributes:
        silhouettes: shapes of unit area, in the order of the file; at least one.
        digest: SHA-256 of the outlines, 64 hexadecimal digits. Banks with the same digest give the same masks.
        provenance: label pictures that the shapes were traced from.
        url: URL of the file without credentials; an empty text for a bank that was not read from a file.
        arrays: arrays of the file by name.
    """

    silhouettes: tuple[Silhouette, ...]
    digest: str
    provenance: Provenance
    url: str
    arrays: Mapping[str, NDArray[np.signedinteger[Any]]] = dataclasses.field(repr=False)

    @property
    def origin(self) -> str:
        """URL of the source that the shapes were traced from, without credentials."""
        return self.provenance.source


def make_bank(shapes: Sequence[Sequence[NDArray[np.int16]]], provenance: Provenance) -> ShapeBank:
    """Makes a bank of outlines.

    Args:
        shapes: contours of each shape; a contour is int16 (V, 2), x and y in half pixels.
        provenance: label pictures that the shapes were traced from.

    Raises:
        ShapesError: no shapes, or a shape that can't be pasted.
    """
    contours = [np.asarray(contour, np.int16) for shape in shapes for contour in shape]
    arrays = {
        "points": np.concatenate([np.empty((0, 2), np.int16), *contours]),
        "vertices": np.array([len(contour) for contour in contours], np.int32),
        "contours": np.array([len(shape) for shape in shapes], np.int32),
    }
    try:
        return ShapeBank(_silhouettes(arrays), _digest(arrays), provenance, "", arrays)
    except ValueError as error:
        raise ShapesError(f"{provenance.source}: {error}") from error


def write_bank(url: str, bank: ShapeBank, options: Options | None = None) -> int:
    """Writes a bank whole or not at all, over a file that is there.

    Args:
        url: URL or path of the file.
        bank: bank to write.
        options: fsspec options of the store.

    Returns:
        Length of the file in bytes: the same bytes for the same bank.

    Raises:
        StoreError: the file can't be written.
    """
    record = {"version": VERSION, "digest": bank.digest, **dataclasses.asdict(bank.provenance)}
    metadata = json.dumps({"record": record, "sha256": _record_digest(record)}, sort_keys=True)
    data = safetensors.numpy.save(dict(bank.arrays), {_KEY: metadata})
    store, name = _located(url, options)
    store.write(name, data)
    return len(data)


def check_target(url: str, options: Options | None = None, overwrite: bool = False) -> None:
    """Refuses to write a bank over anything that is not to be replaced.

    Args:
        url: URL or path of the file that is to be written.
        options: fsspec options of the store.
        overwrite: whether another bank of shapes may be replaced.

    Raises:
        ShapesError: a folder or another file is there, or a bank without `overwrite`.
        StoreError: the store can't be read.
    """
    store, name = _located(url, options)
    shown = redacted(url)
    _refuse_folder(store, name, shown)
    if store.size(name) is None:
        return
    if not _begins_as_bank(store.head(name, 1 << 12)):
        raise ShapesError(f"{shown}: is there already and is no bank of shapes. Give another name")
    if not overwrite:
        raise ShapesError(f"{shown}: is a bank of shapes already. Give another name, or add --overwrite to replace it")


def read_bank(url: str, options: Options | None = None) -> ShapeBank:
    """Reads a bank and proves it by its digests.

    Args:
        url: URL or path of the file.
        options: fsspec options of the store.

    Raises:
        ShapesError: no such file (BankMissing), a folder, another file, a bank of another version, or a damaged one; the message
            names the file.
        StoreError: the store can't be read.
    """
    store, name = _located(url, options)
    shown = redacted(url)
    size = store.size(name)
    if size is None:
        _refuse_folder(store, name, shown)
        raise BankMissing(f"{shown}: no such file. Make a bank of shapes with: python -m shards shapes SRC {shown}")
    if size > MOST_BYTES:
        raise ShapesError(
            f"{shown}: {counted(size, 'byte is', 'bytes are')} too many for a bank of shapes. "
            "Give the file that python -m shards shapes wrote"
        )
    return _parsed(store.read(name), shown)


def local_path(url: str) -> Path | None:
    """Returns the path of a bank on this machine; None for a bank elsewhere.

    Raises:
        ShapesError, StoreError: the URL names no file.
    """
    if scheme(url) not in ("", "file", "local"):
        return None
    store, name = _located(url, None)
    return store.local / name if store.local is not None else None


def _located(url: str, options: Options | None) -> tuple[Store, str]:
    Store(url, options)  # refuses what is no URL, or one that runs programs, as a whole
    folder, name = split(url)
    if not name or folder.endswith(":/"):  # a bucket
        raise ShapesError(f"{redacted(url)!r}: names a folder. A bank of shapes is one file: add its name")
    return Store(folder, options), name


def _refuse_folder(store: Store, name: str, shown: str) -> None:
    if store.local is not None and (store.local / name).is_dir():
        raise ShapesError(f"{shown}: is a folder. A bank of shapes is one file: add its name")


def _parsed(data: bytes, shown: str) -> ShapeBank:
    """Makes the bank of a file's bytes; `shown` is its URL for messages."""
    written = _metadata(data)
    if written is None:
        raise ShapesError(f"{shown}: is no bank of shapes, or its beginning is damaged. {_AGAIN}")
    record = written.get("record")
    if not isinstance(record, dict) or written.get("sha256") != _record_digest(record):
        raise ShapesError(f"{shown}: the record of this bank of shapes is damaged. {_AGAIN}")
    if record.get("version") != VERSION:
        raise ShapesError(
            f"{shown}: is a bank of shapes of version {record.get('version')}, and this program reads version {VERSION}. Make the bank "
            "again with this program's python -m shards shapes, or use the program that wrote the bank"
        )
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ShapesError(f"{shown}: this bank of shapes is cut short or damaged ({error}). {_AGAIN}") from error
    if {name: array.dtype for name, array in arrays.items()} != _TYPES or _digest(arrays) != record.get("digest"):
        raise ShapesError(f"{shown}: the outlines of this bank of shapes are not those of its digest. {_AGAIN}")
    fields = [field.name for field in dataclasses.fields(Provenance)]
    try:
        if missing := [name for name in fields if name not in record]:
            raise ValueError(f"its record has no {', '.join(missing)}")
        return ShapeBank(_silhouettes(arrays), record["digest"], Provenance(**{name: record[name] for name in fields}), shown, arrays)
    except ValueError as error:  # written by another program, since the digests are right
        raise ShapesError(f"{shown}: can't be used as a bank of shapes: {error}. Make it again with python -m shards shapes") from error


def _metadata(data: bytes) -> dict[str, Any] | None:
    """Reads the bank's key of a safetensors file's metadata; None where the bytes are no bank. Numpy's reader does not return it."""
    length = int.from_bytes(data[:8], "little")
    try:
        written = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return written if isinstance(written, dict) else None


def _begins_as_bank(head: bytes) -> bool:
    """Returns whether a file begins as a safetensors file whose only metadata are a bank's; the head may end within them."""
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= MOST_BYTES and head[8:].startswith(f'{{"__metadata__":{{"{_KEY}":"'.encode())


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(arrays: Mapping[str, NDArray[np.signedinteger[Any]]]) -> str:
    """SHA-256 of the arrays' names, shapes and little-endian bytes."""
    found = hashlib.sha256()
    for name in _TYPES:
        array = arrays[name]
        found.update(f"{name} {array.shape}\n".encode())
        found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def _silhouettes(arrays: Mapping[str, NDArray[np.signedinteger[Any]]]) -> tuple[Silhouette, ...]:
    """Makes the shapes.

    Raises:
        ValueError: the arrays do not fit together, there is no shape, or one can't be pasted; the message gives its number.
    """
    points, vertices, contours = (arrays[name] for name in _TYPES)
    counts_fit = points.ndim == 2 and points.shape[1] == 2 and vertices.ndim == contours.ndim == 1
    if not counts_fit or min(vertices, default=1) < 0 or min(contours, default=1) < 0:
        raise ValueError("the arrays are no outlines")
    if vertices.sum(dtype=np.int64) != len(points) or contours.sum(dtype=np.int64) != len(vertices):
        raise ValueError("the arrays are not as long as they say")
    if not len(contours):
        raise ValueError("no shapes")
    pieces = np.split(points, np.cumsum(vertices)[:-1])
    found, start = [], 0
    for number, count in enumerate(contours.tolist()):
        try:
            found.append(Silhouette.of(pieces[start : start + count]))
        except ValueError as error:
            raise ValueError(f"shape {number}: {error}") from error
        start += count
    return tuple(found)
