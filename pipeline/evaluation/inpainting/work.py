"""Table 1 of a run: the work of one rank of `launch/evaluate.py inpainting`.

All ranks fill and judge pictures, then search the training set for nearest neighbours, then paste and judge these; each kind of work is cut
into units that do not depend on the ranks, and a unit's part is the same whoever makes it. One rank writes the table from the parts. Ranks
share the folder and nothing else, so that any number of them may come and go.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import torch

from monitoring.run_files import INPAINTING, step_name
from pipeline.evaluation.embedding.network import device_of, one_core
from pipeline.evaluation.embedding.units import Unit, cut_units
from pipeline.evaluation.inpainting.fills import make_describers, make_fills
from pipeline.evaluation.inpainting.inputs import open_inputs
from pipeline.evaluation.inpainting.judging import Judge, file_digest
from pipeline.evaluation.inpainting.lpips import read_lpips
from pipeline.evaluation.inpainting.output import PARTS, Output
from pipeline.evaluation.inpainting.parts import InpaintingError, part_folder
from pipeline.evaluation.inpainting.phases import Phase
from pipeline.evaluation.inpainting.search import Search
from pipeline.evaluation.inpainting.settings import FILLS, NEIGHBOURS, NETWORK, InpaintingConfig, check
from pipeline.evaluation.part_folder import PartDamaged, PartFolder
from pipeline.evaluation.rank import Rank
from pipeline.stream.counters import Counters
from pipeline.training.supervision.interruption import Interruption

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """The end of a rank's work.

    Attributes:
        finished: True where the table is whole.
        text: the table, or how far the work has come, for a person.
    """

    finished: bool
    text: str


class _Interrupted(Exception):
    """A signal asked for the end."""


def evaluate(config: InpaintingConfig, rank: Rank | None = None, interruption: Interruption | None = None) -> Outcome:
    """Does a rank's share of the work, and waits until the table is whole.

    Args:
        config: settings.
        rank: this process among the others; None: the only one.
        interruption: signals to end at; the units under way are then lost.

    Raises:
        ExplainedError: the run or a data set can't be read, the folder holds another table or can't be written, or more pictures are
            unreadable than allowed.
    """
    check(config)
    threads = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            return _Work(config, rank or Rank(), interruption, stack).run()
    finally:
        torch.set_num_threads(threads)  # one_core has set it for the whole process


class _Work:
    """The work of one rank."""

    def __init__(self, config: InpaintingConfig, rank: Rank, interruption: Interruption | None, stack: ExitStack) -> None:
        one_core()
        self._config, self._rank, self._interruption, self._counters = config, rank, interruption, Counters()
        self._device = device_of(rank.local_rank)
        lpips = read_lpips(Path(config.lpips), self._device) if config.lpips else None
        self._inputs = inputs = open_inputs(config, self._device, self._counters, stack)
        self._methods = make_fills([NETWORK, *(name for name in inputs.methods if name in FILLS)], inputs.painter)
        self._describers = make_describers([name for name in inputs.methods if name in NEIGHBOURS], inputs.painter)
        self._facts: dict[str, Any] = {
            **inputs.facts,
            "lpips": file_digest(Path(config.lpips)) if config.lpips else None,
            "opencv": cv2.__version__,
            "pypatchmatch": _version("pypatchmatch") if "patchmatch" in inputs.methods else None,
            "save": config.save,
        }
        self._folder = self._chosen_folder()
        self._saved = self._folder / "fills" if config.save else None
        self._judge = Judge(inputs.choice, config.batch, config.pictures, lpips, self._device, self._saved, self._check)
        self._phase: Phase | None = None

    def run(self) -> Outcome:
        """Takes units of one kind of work after the other until the table is whole."""
        titles = {each.name: each.title for each in self._describers} | {each.name: each.title for each in self._methods}
        output = Output(self._folder, self._facts, titles, self._inputs, self._config)
        if (text := output.finished()) is not None:
            return Outcome(True, f"{text}\n{self._folder}: was whole already")
        try:
            phases = self._phases()
            for phase in phases:
                phase.parts.remove_damaged(phase.parts.units[self._rank.number :: self._rank.world_size], self._warn)
            while (text := output.finished()) is None:
                self._round(output, phases)
        except _Interrupted as signal:
            return Outcome(False, f"{self._folder}: {signal}. The same command continues")
        except InpaintingError:
            if (text := output.finished()) is None:  # a rank that finishes the table at this moment removes the parts
                raise
        output.tidy()
        return Outcome(True, text)

    def _round(self, output: Output, phases: Sequence[Phase]) -> None:
        """Does all work that is missing, and writes the table unless another rank is doing so."""
        try:
            for phase in phases:
                self._phase = phase
                phase.run(self._rank, self._workers(), self._check_signals, lambda: output.finished() is not None, self._bytes_read)
                output.check_unreadable(phase.parts, phase.total, phase.setting)
            output.finish([phase.parts for phase in phases])
        except PartDamaged as damage:
            if output.finished() is None:
                phases[0].parts.remove(damage, self._warn)
        if output.finished() is None:
            self._check_signals()
            time.sleep(_POLL_SECONDS)

    def _phases(self) -> list[Phase]:
        """The kinds of work, in their order."""
        inputs, config = self._inputs, self._config
        units = cut_units(inputs.choice.count, max(1, config.part // config.batch) * config.batch)
        sizes = [len(unit) for unit in units]
        pictures = self._parts("pictures", units)
        fills = partial(self._judge.fills, methods=self._methods, describers=self._describers)
        found = [Phase("pictures", "data.shards", pictures, sizes, fills)]
        if inputs.training is not None:
            training = inputs.training
            searched = self._parts("training", training.units(config.train_part))
            search = Search(pictures, searched, training, self._describers, self._device, self._check)
            counts = [training.count(unit) for unit in searched.units]
            found.append(Phase("training pictures", "train.shards", searched, counts, search.search))
            names = [each.name for each in self._describers]
            pasted = self._parts("neighbours", units)
            compute = partial(self._judge.pasted, names=names, neighbours=search.neighbours)
            found.append(Phase("pictures with neighbours", "data.shards", pasted, sizes, compute))
        return found

    def _parts(self, name: str, units: Sequence[Unit]) -> PartFolder:
        parts = part_folder(self._folder / PARTS / name, self._facts, units)
        try:
            parts.open()
        except OSError as error:
            raise InpaintingError(f"{parts.folder}: can't be made: {error.strerror or error}. Name another folder with --out") from error
        return parts

    def _chosen_folder(self) -> Path:
        """The folder of the table.

        Raises:
            InpaintingError: none is named, and the run is no folder of this machine.
        """
        if self._config.out:
            return Path(self._config.out)
        run = Path(self._config.run)
        if "://" in self._config.run or not run.is_dir():
            raise InpaintingError("out: name a folder for the table with --out, because RUN is no folder of this machine")
        return run / INPAINTING / step_name(self._inputs.painter.step)

    def _workers(self) -> int:
        cores = max(1, min(16, len(os.sched_getaffinity(0)) // self._rank.ranks_on_node))
        return self._config.workers or (cores if self._device.type == "cpu" else 2)

    def _bytes_read(self) -> float:
        return self._counters.totals().get("bytes_read_store", 0.0)

    def _check(self) -> None:
        """Ends the work of a thread between two batches once the work is over."""
        if self._phase is not None:
            self._phase.check()

    def _check_signals(self) -> None:
        if self._interruption is not None and self._interruption.requested is not None:
            raise _Interrupted(f"interrupted ({self._interruption.requested})")

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
