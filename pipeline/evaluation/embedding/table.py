"""The columns of embedded samples, and the parquet files that hold them: a part for each unit, and the whole.

Columns: id int64, key string, label int64 (-1 where unknown), embedding fixed_size_list of float16 or float32. All facts stand as JSON
under the key `context_encoder` of the file's metadata. Every page has a checksum, so that a damaged part is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.embedding.flow import Features
from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.part_folder import PartDamaged, differences
from shards.counting import counted
from shards.errors import ExplainedError

KEY = b"context_encoder"
_GROUP_BYTES = 64 << 20  # features of a row group of the whole file
_AS_STORED = {"orientation": "stored"}  # where facts name no orientation, pictures were not turned, as in earlier versions
_OPTIONS: Mapping[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"},
    "write_statistics": ["id", "label"],
    "write_page_checksum": True,
}


class OtherFeatures(ExplainedError):
    """A file of features that were made from something else."""


def schema_of(dimensions: int, dtype: str) -> pa.Schema:
    """The columns of a file.

    Args:
        dimensions: values of a sample's features.
        dtype: format of the values, float16 or float32.
    """
    values = pa.list_(pa.field("element", getattr(pa, dtype)(), nullable=False), dimensions)
    kinds = {"id": pa.int64(), "key": pa.string(), "label": pa.int64(), "embedding": values}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def write_part(file: IO[bytes], features: Features, schema: pa.Schema, facts: Mapping[str, Any]) -> None:
    """Writes the part of a unit.

    Args:
        file: file to write.
        features: rows of the unit.
        schema: columns of the file.
        facts: what the features were made from.
    """
    element = schema.field("embedding").type
    columns = [
        pa.array(features.ids),
        pa.array(features.keys, pa.string()),
        pa.array(features.labels),
        pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(features.values).reshape(-1)), type=element),
    ]
    unreadable = [
        {"sample_id": each.sample_id, "name": each.name, "shard": each.shard, "cause": each.cause, "reason": each.reason}
        for each in features.unreadable
    ]
    known = {**facts, "unit": features.unit.number, "unreadable": unreadable}
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata({KEY: json.dumps(known).encode()}))
    pq.write_table(table, file, row_group_size=max(1, len(table)), **_OPTIONS)


def facts_of(path: Path) -> dict[str, Any]:
    """The facts in the metadata of a file.

    Raises:
        PartDamaged: the file is no parquet file of features, or is cut short.
    """
    return _footer(path)[0]


def _footer(path: Path) -> tuple[dict[str, Any], int]:
    """The facts in the metadata of a file, and its number of rows."""
    try:
        footer = pq.read_metadata(path)
        facts = json.loads((footer.metadata or {})[KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise PartDamaged(path, f"not a parquet file of features, or damaged ({' '.join(str(error).split())})") from error
    if not isinstance(facts, dict):
        raise PartDamaged(path, "not a parquet file of features")
    return facts, footer.num_rows


def refuse_other(path: Path, found: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Compares what a file was made from with what features are made from now.

    Args:
        path: path of the file, for the error.
        found: facts of the file.
        facts: facts of now.

    Raises:
        OtherFeatures: they differ; the message names the facts.
    """
    there, now = {**_AS_STORED, **found}, {**_AS_STORED, **facts}
    different = differences(there, now)
    if different:
        shown = "; ".join(different.values())
        way = f"Continue it with --data.orientation {there['orientation']}, name" if list(different) == ["orientation"] else "Name"
        raise OtherFeatures(f"{path}: holds other features: {shown}. {way} another output, or remove this one and its parts to begin anew")


def unreadable_of(path: Path, unit: Unit, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Checks the footer of a part, and returns its samples that could not be read.

    Raises:
        PartDamaged: it can't be read, or is another unit's.
        OtherFeatures: the part was made from something else.
    """
    found, rows = _footer(path)
    refuse_other(path, found, facts)
    unreadable = found.get("unreadable")
    if not isinstance(unreadable, list) or found.get("unit") != unit.number or rows != len(unit) - len(unreadable):
        raise PartDamaged(path, f"holds {counted(rows, 'sample')} of unit {found.get('unit')}, not all of unit {unit.number}")
    return unreadable


def read_part(path: Path, unit: Unit, unreadable: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Reads a part, every checksum and every id.

    Raises:
        PartDamaged: it can't be read, or has other samples than the unit.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (OSError, pa.ArrowException) as error:
        raise PartDamaged(path, f"damaged ({' '.join(str(error).split())})") from error
    left_out = {int(each["sample_id"]) for each in unreadable}
    if table.column("id").to_pylist() != [sample for sample in range(unit.start, unit.stop) if sample not in left_out]:
        raise PartDamaged(path, "lacks samples of its unit, or has others")
    return table


def join(
    file: IO[bytes],
    parts: Sequence[tuple[Path, Unit, list[dict[str, Any]]]],
    schema: pa.Schema,
    facts: Mapping[str, Any],
    row_bytes: int,
    waiting: Callable[[], None],
) -> None:
    """Writes the whole from its parts, some parts in memory at a time.

    Args:
        file: file to write.
        parts: path, unit and unreadable samples of each part, in the order of the units.
        schema: columns of the file.
        facts: facts for the metadata.
        row_bytes: bytes of a sample's features.
        waiting: called between row groups; an error that it raises ends the work.

    Raises:
        PartDamaged: a part is damaged, or lacks rows.
    """
    with pq.ParquetWriter(file, schema.with_metadata({KEY: json.dumps(facts).encode()}), **_OPTIONS) as writer:
        for group in _groups(parts, row_bytes):
            waiting()
            tables = [read_part(*part).replace_schema_metadata(writer.schema.metadata) for part in group]
            whole = pa.concat_tables(tables)
            writer.write_table(whole, row_group_size=max(1, len(whole)))


def _groups(
    parts: Sequence[tuple[Path, Unit, list[dict[str, Any]]]], row_bytes: int
) -> Iterator[list[tuple[Path, Unit, list[dict[str, Any]]]]]:
    """Groups parts whose features fit a row group."""
    group: list[tuple[Path, Unit, list[dict[str, Any]]]] = []
    rows = 0
    for part in parts:
        if group and (rows + len(part[1])) * row_bytes > _GROUP_BYTES:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += len(part[1])
    if group:
        yield group
