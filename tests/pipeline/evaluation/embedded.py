"""Small outputs of `launch/embed.py` for tests: settings, and what a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.evaluation.embed import Outcome, embed
from pipeline.evaluation.embedding.settings import EmbedConfig, parse
from pipeline.evaluation.rank import Rank


def settings(encoder: Path, shards: str | Path, output: Path, *more: str) -> EmbedConfig:
    """Settings of batches of 8 and parts of 24 samples."""
    return parse([str(encoder), str(output), "--data.shards", str(shards), "--batch", "8", "--part", "24", *more])


def embedded(encoder: Path, shards: str | Path, output: Path, *more: str, rank: Rank | None = None) -> Outcome:
    """Embeds with these settings in this process, to the end."""
    return embed(settings(encoder, shards, output, *more), rank)


def columns(path: Path) -> dict[str, Any]:
    """The columns of an output, embedding as an array (n, values)."""
    table = pq.read_table(path)
    found = {name: table.column(name).to_pylist() for name in ("id", "key", "label")}
    return {**found, "embedding": values_of(path)}


def values_of(path: Path) -> NDArray[Any]:
    """The features of an output, (n, values), of the file's format."""
    column = pq.read_table(path, columns=["embedding"]).column("embedding").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def facts(path: Path) -> dict[str, Any]:
    """The facts in the metadata of a file."""
    found: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"context_encoder"])
    return found
