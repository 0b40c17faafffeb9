"""The folder of a table: its parts while it is made, then table.json, table.csv, pictures.csv and grid.png."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.run_files import TABLE, TABLE_GRID, json_text
from pipeline.evaluation.inpainting.grid import save_methods_grid
from pipeline.evaluation.inpainting.inputs import Inputs
from pipeline.evaluation.inpainting.parts import InpaintingError, Part, read_part, refuse_other
from pipeline.evaluation.inpainting.settings import NETWORK, InpaintingConfig
from pipeline.evaluation.inpainting.table import DEFINITIONS, as_text, methods_of, names_of, pictures_csv, table_csv
from pipeline.evaluation.part_folder import PartFolder
from shards.counting import counted
from shards.local_files import whole_file
from shards.urls import redacted

PARTS, UNREADABLE = "parts", "unreadable.jsonl"


class Output:
    """The files of a table.

    Args:
        folder: folder of the table.
        facts: all that decides the figures.
        titles: title of each method, by name, in the order of the table.
        inputs: what the table is made from.
        config: settings.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], titles: Mapping[str, str], inputs: Inputs, config: InpaintingConfig) -> None:
        self.folder, self._facts, self._titles, self._inputs, self._config = folder, facts, titles, inputs, config

    def finished(self) -> str | None:
        """The table in words, once it is whole; None before.

        Raises:
            InpaintingError: the folder holds another table, or one that can't be read.
        """
        path = self.folder / TABLE
        if not path.exists():
            return None
        try:
            table = json.loads(path.read_bytes())
            facts = {**self._facts}
            if not self._config.save:
                facts.pop("save", None)  # a table with its fills is also one without
            refuse_other(path, table["facts"], facts)
            return as_text(table)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InpaintingError(f"{path}: is there and can't be read as a table. Remove it, or name another folder with --out") from error

    def check_unreadable(self, parts: PartFolder, total: int, what: str) -> None:
        """Refuses a table of too few pictures; what is unreadable is named in a file.

        Args:
            parts: parts whose unreadable samples are counted; those that are not there count none.
            total: number of samples in all parts.
            what: setting that names the samples' data set.

        Raises:
            InpaintingError: more are unreadable than data.max_bad_fraction allows.
            PartDamaged: a part can't be read.
        """
        missing = {unit.number for unit in parts.missing()}
        found = [unit for unit in parts.units if unit.number not in missing]
        bad = _in_order(each for unit in found for each in read_part(parts.part(unit), unit, self._facts, ()).unreadable)
        allowed = self._config.data.max_bad_fraction
        if len(bad) > allowed * total:
            self._write(UNREADABLE, "".join(json.dumps(each) + "\n" for each in bad).encode())
            first = "; ".join(f"sample {each['sample_id']} ({each['name']} in {each['shard']}): {each['reason']}" for each in bad[:3])
            raise InpaintingError(
                f"{what}: {len(bad):,} of {counted(total, 'picture is', 'pictures are')} unreadable, data.max_bad_fraction allows "
                f"{allowed:g} of them: {first}. All are named in {self.folder / UNREADABLE}. Build the data set again, or allow more"
            )

    def finish(self, parts: Sequence[PartFolder]) -> None:
        """Writes the table if all parts are there and no other process is doing so.

        Args:
            parts: parts of every kind of work.

        Raises:
            PartDamaged: a part can't be read.
            InpaintingError: the files can't be written, or no picture can be read.
        """
        if any(each.missing() for each in parts):
            return
        try:
            with parts[0].locked(wait=False) as alone:
                if alone and not (self.folder / TABLE).exists():
                    self._finish(parts)
        except FileNotFoundError:
            pass  # the process that wrote the table has removed the parts
        except OSError as error:
            raise InpaintingError(f"{self.folder}: can't be written: {error.strerror or error}. The same command continues") from error

    def _finish(self, parts: Sequence[PartFolder]) -> None:
        read = [[read_part(each.part(unit), unit, self._facts) for unit in each.units] for each in parts]
        arrays = _joined([part for kind in read for part in kind])
        if "numbers" not in arrays:
            raise InpaintingError("data.shards: none of the pictures can be read, so there is nothing to judge")
        numbers = arrays["numbers"][: len(arrays[f"figures/{NETWORK}"])]  # the parts of neighbours repeat them
        figures = {name: arrays[f"figures/{name}"] for name in sorted(self._titles, key=lambda name: name == NETWORK)}
        unreadable = _in_order(each for part in read[0] for each in part.unreadable)
        of_training = _in_order(each for part in read[1] for each in part.unreadable) if len(read) > 1 else []
        seconds: dict[str, float] = defaultdict(float)
        for part in (part for kind in read for part in kind):
            for name, value in part.seconds.items():
                seconds[name] += value
        table = self._table(figures, unreadable, of_training)
        table["seconds"] = {name: round(value, 3) for name, value in sorted(seconds.items())}
        if unreadable or of_training:
            self._write(UNREADABLE, "".join(json.dumps(each) + "\n" for each in (*unreadable, *of_training)).encode())
        samples = [self._inputs.choice.sample_id(number) for number in numbers.tolist()]
        self._write("pictures.csv", pictures_csv(numbers, samples, figures))
        self._write("table.csv", table_csv(table))
        if "shown/truth" in arrays:
            shown = {name: arrays[f"shown/{name}"] for name in figures}
            title = f"step {self._inputs.painter.step:,}, the first {counted(len(arrays['shown/truth']), 'picture')} of the table"
            save_methods_grid(self.folder / TABLE_GRID, arrays["shown/truth"], arrays["shown/mask"], shown, title)
        self._write(TABLE, json_text(table, indent=1).encode())  # last: the table is whole when this is there
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def _table(
        self, figures: Mapping[str, NDArray[np.float64]], unreadable: Sequence[Mapping[str, Any]], of_training: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        inputs, config = self._inputs, self._config
        notes = [*inputs.notes]
        for count, what in ((len(unreadable), "judged on"), (len(of_training), "searched for neighbours")):
            if count:
                bad = counted(count, "unreadable picture is", "unreadable pictures are")
                notes.append(f"{bad} left out of those that are {what}, see {self.folder / UNREADABLE}")
        count = len(next(iter(figures.values())))
        return {
            "facts": self._facts,
            "run": redacted(config.run),
            "recipe": inputs.painter.recipe.name,
            "step": inputs.painter.step,
            "side": inputs.painter.size,
            "pictures": count,
            "judged": redacted(config.data.shards) if config.data.shards else "those that the run holds back",
            "mask": config.mask.kind,
            "unreadable": len(unreadable),
            "training_pictures": inputs.training.total if inputs.training is not None else 0,
            "training_unreadable": len(of_training),
            "definitions": {name: DEFINITIONS[name] for name in names_of(next(iter(figures.values())))},
            "methods": methods_of(figures, self._titles),
            "notes": notes,
        }

    def _write(self, name: str, content: bytes) -> None:
        with whole_file(self.folder / name) as file:
            file.write(content)

    def tidy(self) -> None:
        """Removes parts of a table that is whole, which a rank that came late has made anew."""
        with suppress(OSError):
            if (self.folder / TABLE).exists():
                shutil.rmtree(self.folder / PARTS)


def _in_order(unreadable: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(unreadable, key=lambda each: int(each["sample_id"]))


def _joined(parts: Sequence[Part]) -> dict[str, NDArray[Any]]:
    """Joins arrays of the same name; queries and distances, which only the search needs, are left out."""
    found: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for part in parts:
        for name, values in part.arrays.items():
            if name == "numbers" or name.startswith(("figures/", "shown/")):
                found[name].append(values)
    return {name: np.concatenate(values) for name, values in found.items()}
