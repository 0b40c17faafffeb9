"""The part files of a table: arrays and facts of one unit, as safetensors, with a digest of every byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.part_folder import PartDamaged, PartFolder, PartFormat, differences
from pipeline.stream.read.samples import BadSample
from shards.errors import ExplainedError

_KEY = "context_encoder"
_UNNAMED = {"save": False}  # facts of a table that was made before they were named


class InpaintingError(ExplainedError):
    """A table can't be made or written. The message names the file, the setting or the picture, and what to do."""


@dataclass(frozen=True)
class Part:
    """The result of a unit.

    Attributes:
        arrays: arrays by name.
        seconds: seconds of each kind of work.
        unreadable: samples of the unit that could not be read, as plain values.
    """

    arrays: Mapping[str, NDArray[Any]]
    seconds: Mapping[str, float]
    unreadable: Sequence[Mapping[str, Any]]


def plain(error: BadSample) -> dict[str, Any]:
    """The facts of an unreadable sample as plain values."""
    return {"sample_id": error.sample_id, "name": error.name, "shard": error.shard, "cause": error.cause, "reason": error.reason}


def write_part(file: IO[bytes], part: Part, unit: Unit, facts: Mapping[str, Any]) -> None:
    """Writes a part.

    Args:
        file: file to write.
        part: result of the unit.
        unit: unit of the part.
        facts: all that the part is made from.
    """
    arrays = {name: np.ascontiguousarray(values) for name, values in part.arrays.items()}
    about = {"unit": unit.number, "facts": facts, "seconds": part.seconds, "unreadable": part.unreadable, "digest": _digest(arrays)}
    file.write(save(arrays, {_KEY: json.dumps(about)}))


def read_part(path: Path, unit: Unit, facts: Mapping[str, Any], wanted: Sequence[str] | None = None) -> Part:
    """Reads a part.

    Args:
        path: path of the part.
        unit: unit whose part it has to be.
        facts: facts that the part has to be made from.
        wanted: names of the arrays to read, without a look at the digest; None reads all and checks it.

    Raises:
        PartDamaged: the part can't be read, or is another unit's.
        InpaintingError: the part is made from something else.
    """
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            names = sorted(file.keys())
            arrays = {name: file.get_tensor(name) for name in (names if wanted is None else wanted)}
        part = Part(arrays, about["seconds"], about["unreadable"])
        found, number, seal = about["facts"], about["unit"], about["digest"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise PartDamaged(path, f"not a part of a table, or damaged ({' '.join(str(error).split())})") from error
    refuse_other(path, found, facts)
    if number != unit.number:
        raise PartDamaged(path, f"the part of unit {number}, not of {unit.number}")
    if wanted is None and seal != _digest(arrays):
        raise PartDamaged(path, "damaged: its figures are not those that were written")
    return part


def refuse_other(path: Path, found: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Compares what a file was made from with what a table is made from now.

    Args:
        path: path of the file, for the error.
        found: facts of the file.
        facts: facts of now.

    Raises:
        InpaintingError: they differ; the message names the facts.
    """
    if different := differences({**_UNNAMED, **found}, facts):
        shown = "; ".join(different.values())
        again = "give --save True again, " if "save" in different and found.get("save") else ""  # the parts hold figures, not fills
        raise InpaintingError(
            f"{path}: holds another table: {shown}. Name another folder with --out, {again}or remove this one to begin anew"
        )


def part_folder(folder: Path, facts: Mapping[str, Any], units: Sequence[Unit]) -> PartFolder:
    """The folder of the parts of some units."""
    return PartFolder(folder, facts, units, PartFormat(".safetensors", "_facts.json", read_part, refuse_other, InpaintingError))


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """16 hexadecimal digits of all arrays."""
    seen = xxhash.xxh3_64()
    for name, values in sorted(arrays.items()):
        seen.update(f"\0{name} {values.dtype.str} {values.shape}\0".encode())
        seen.update(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
    return seen.hexdigest()
