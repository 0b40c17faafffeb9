"""The output of an embedding: the parts joined into one file, or their folder, with the list of samples that could not be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.evaluation.embedding.network import EmbedError
from pipeline.evaluation.embedding.part_folder import PartFolder
from pipeline.evaluation.embedding.table import facts_of, join, refuse_other, unreadable_of
from pipeline.evaluation.embedding.units import Unit
from pipeline.evaluation.part_folder import PartDamaged
from shards.local_files import whole_file

SUFFIX = ".parquet"
_SUMMARY = "_complete.json"


class Output:
    """The output, from its first part to the whole.

    Args:
        path: OUT.parquet, whose parts lie in OUT.parquet.parts until they are joined; any other name is a folder that keeps its parts.
        facts: all that the features are made from.
        units: units of the data set.

    Attributes:
        parts: parts of the output.
        quarantine: file that lists unreadable samples.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], units: Sequence[Unit]) -> None:
        self.path = path
        self._one_file = path.suffix == SUFFIX
        self.parts = PartFolder(path.with_name(f"{path.name}.parts") if self._one_file else path, facts, units)
        self.quarantine = path.with_name(f"{path.name}.quarantine.jsonl") if self._one_file else path / "_quarantine.jsonl"

    @property
    def finished(self) -> bool:
        """True once the output is whole."""
        return self.path.exists() if self._one_file else (self.path / _SUMMARY).exists()

    def facts(self) -> dict[str, Any]:
        """The facts of the whole output.

        Raises:
            PartDamaged: it can't be read, or is something else.
        """
        if self._one_file:
            return facts_of(self.path)
        found: dict[str, Any] = json.loads((self.path / _SUMMARY).read_bytes())
        return found

    def open(self) -> None:
        """Makes the folder of the parts, unless the output is whole.

        Raises:
            OtherFeatures: output or parts are made from something else.
            EmbedError: something else has the output's name, or the folder can't be made.
        """
        if self._check():
            return
        if not self.path.parent.is_dir():
            raise EmbedError(f"{self.path}: its folder does not exist. Make it first, or name another output")
        try:
            self.parts.open()
        except OSError as error:
            if not self._check():  # a rank that finishes the output at this moment removes the folder
                raise EmbedError(f"{self.parts.folder}: can't be made: {error.strerror or error}. Name another output") from error
        if self._one_file and self._check():
            shutil.rmtree(self.parts.folder, ignore_errors=True)

    def finish(
        self,
        schema: pa.Schema,
        row_bytes: int,
        summary: Callable[[int], Mapping[str, Any]],
        warn: Callable[[str], None],
        waiting: Callable[[], None] = lambda: None,
    ) -> bool:
        """Makes the output whole if all parts are there and no other process is doing so; a damaged part is removed instead.

        Args:
            schema: columns of the output.
            row_bytes: bytes of a sample's features.
            summary: facts for the output's metadata, from the number of unreadable samples.
            warn: called with a sentence for each damaged part.
            waiting: called every now and then; an error that it raises ends the work.

        Returns:
            Whether the output is whole.

        Raises:
            OtherFeatures: a part is made from something else.
            EmbedError: the output can't be written.
        """
        if self.parts.missing():
            return self.finished
        try:
            with self.parts.locked(wait=False) as alone:
                if alone and not self.finished:
                    self._finish(schema, row_bytes, summary, waiting)
        except PartDamaged as error:
            self.parts.remove(error, warn)
        except FileNotFoundError:
            pass  # the process that finished the output has removed the parts
        except OSError as error:
            raise EmbedError(f"{self.path}: can't be written: {error.strerror or error}. The same command continues") from error
        return self.finished

    def _finish(self, schema: pa.Schema, row_bytes: int, summary: Callable[[int], Mapping[str, Any]], waiting: Callable[[], None]) -> None:
        paths = [(self.parts.part(unit), unit) for unit in self.parts.units]
        parts = [(path, unit, unreadable_of(path, unit, self.parts.facts)) for path, unit in paths]
        unreadable = [each for _, _, some in parts for each in some]
        facts = summary(len(unreadable))
        if unreadable:
            with whole_file(self.quarantine, one_writer=True) as file:
                file.writelines(json.dumps(each).encode() + b"\n" for each in unreadable)
        else:
            self.quarantine.unlink(missing_ok=True)
        if self._one_file:
            with whole_file(self.path, one_writer=True) as file:
                join(file, parts, schema, facts, row_bytes, waiting)
            shutil.rmtree(self.parts.folder, ignore_errors=True)
            return
        with whole_file(self.path / _SUMMARY, one_writer=True) as file:
            file.write(json.dumps(facts).encode())
        self.parts.sweep()

    def _check(self) -> bool:
        """True if the output is whole; refuses one that is something else."""
        if not self.finished:
            return False
        try:
            found = self.facts()
        except (PartDamaged, ValueError, OSError) as error:
            raise EmbedError(f"{self.path}: is there and can't be read as features. Name another output, or remove it") from error
        refuse_other(self.path, found, self.parts.facts)
        return True
