"""The parts of an embedding: parquet files, in a folder that all ranks share (see `pipeline.evaluation.part_folder`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation import part_folder
from pipeline.evaluation.embedding.network import EmbedError
from pipeline.evaluation.embedding.table import refuse_other, unreadable_of
from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.part_folder import PartFormat

_PARQUET = PartFormat(".parquet", "_features.json", unreadable_of, refuse_other, EmbedError)


class PartFolder(part_folder.PartFolder):
    """Parts of an output.

    Args:
        folder: folder of the parts, which all ranks share.
        facts: all that the features are made from.
        units: units of the data set.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], units: Sequence[Unit]) -> None:
        super().__init__(folder, facts, units, _PARQUET)
