"""Features of a whole data set by a trained encoder: the work of one rank of `launch/embed.py`.

Every rank takes units of the data set until all have a part, and one of them joins the parts. Ranks share the output's folder and nothing
else, so that any number of them may come and go; a rank that is done waits for the others' units and takes those of ranks that ended.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config import DataConfig
from pipeline.evaluation.embedding.flow import Features, Flow
from pipeline.evaluation.embedding.network import EmbedError, Extractor, device_of, digest_of, one_core
from pipeline.evaluation.embedding.pictures import PictureCutter
from pipeline.evaluation.embedding.settings import EmbedConfig, check
from pipeline.evaluation.embedding.units import Unit, cut_units, in_turn, rows_of_unit
from pipeline.evaluation.encoder import TrainedEncoder, read_encoder
from pipeline.evaluation.part_folder import Claim
from pipeline.evaluation.rank import Rank
from pipeline.stream.batch.quarantine import Quarantine
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import open_datasets
from pipeline.stream.decode.decoder import Decoder, make_decoder
from pipeline.training.supervision.interruption import Interruption
from shards.console import ProgressReport
from shards.counting import counted

try:
    from pipeline.evaluation.embedding.output import Output
    from pipeline.evaluation.embedding.table import schema_of, write_part
except ImportError as missing:
    raise EmbedError("features are written as parquet files: pip install -e '.[embed]'") from missing

_POLL_SECONDS = 1.0
_WRITES_AHEAD = 2  # parts that wait to be written


@dataclass(frozen=True)
class Outcome:
    """The end of a rank's work.

    Attributes:
        finished: True where the output is whole.
        sentence: the end in words, for a person.
        pictures: pictures that this rank embedded.
        seconds: seconds from its first unit to the end.
    """

    finished: bool
    sentence: str
    pictures: int = 0
    seconds: float = 0.0


class _Interrupted(Exception):
    """A signal asked for the end."""


def embed(config: EmbedConfig, rank: Rank | None = None, interruption: Interruption | None = None) -> Outcome:
    """Does a rank's share of the work, and waits until the output is whole.

    Args:
        config: settings.
        rank: this process among the others; None: the only one.
        interruption: signals to end at; the units under way are then lost.

    Raises:
        ExplainedError: encoder or data set can't be read, the output is of other features or can't be written, more samples are unreadable
            than allowed, or a value can't be stored.
    """
    check(config)
    rank = rank or Rank()
    threads = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            return _Work(config, rank, interruption, stack).run()
    finally:
        torch.set_num_threads(threads)  # one_core has set it for the whole process


class _Work:
    """The work of one rank."""

    def __init__(self, config: EmbedConfig, rank: Rank, interruption: Interruption | None, stack: ExitStack) -> None:
        self._config, self._rank, self._interruption, self._stack = config, rank, interruption, stack
        self._encoder: TrainedEncoder = read_encoder(config.encoder, config.data.storage_options)
        one_core()
        self._extractor = Extractor(self._encoder, config, device_of(rank.local_rank))
        self._decoder: Decoder = make_decoder(config.data.decoder)
        self._counters = Counters()
        (self._dataset,) = open_datasets(_as_read(config), 0, self._counters)
        stack.callback(self._dataset.close)
        total = self._dataset.manifest.total_samples
        self._samples = min(config.limit or total, total)
        self._row_bytes = self._extractor.dimensions * (2 if config.dtype == "float16" else 4)
        self._schema = schema_of(self._extractor.dimensions, config.dtype)
        units = cut_units(self._samples, rows_of_unit(config.part, config.batch, self._row_bytes))
        self._output = Output(Path(config.output), self._facts(), units)

    def run(self) -> Outcome:
        """Takes units until the output is whole."""
        self._output.open()
        if self._output.finished:
            return Outcome(True, f"{self._sentence()}; it was whole already")
        parts = self._output.parts
        parts.remove_damaged(self._share(parts.units), self._warn)
        self._quarantine = Quarantine(parts.folder / "_quarantine.jsonl", self._samples, self._config.data.max_bad_fraction, self._counters)
        there = self._there()
        report = ProgressReport("pictures", self._samples, there, quiet=self._rank.number > 0)
        self._stack.callback(report.close)
        began, made, read = time.monotonic(), 0, 0.0
        try:
            with self._flow() as flow:
                while not self._output.finished:
                    for count in self._round(flow):
                        made += count
                        now, bytes_read = self._there(), self._counters.totals().get("bytes_read_store", 0.0)
                        report.advance(now - there, int(bytes_read - read))
                        there, read = now, bytes_read
                    if not self._output.finish(self._schema, self._row_bytes, self._summary, self._warn, self._check_signals):
                        self._pause()
        except _Interrupted as signal:
            return Outcome(
                False,
                f"{self._output.path}: {signal} after {self._there():,} of {counted(self._samples, 'picture')}. The same command continues",
            )
        seconds = time.monotonic() - began
        speed = f"; this rank made {made:,}, {made / seconds:,.0f} a second" if made else ""
        return Outcome(True, self._sentence() + speed, made, seconds)

    def _flow(self) -> Flow:
        data, side = self._config.data, self._encoder.facts.transform.side
        cores = max(1, min(16, len(os.sched_getaffinity(0)) // self._rank.ranks_on_node))
        return Flow(
            self._dataset,
            cutter_of(self._config, self._encoder, self._decoder),
            self._extractor,
            side,
            self._config.batch,
            decoders=data.threads or cores,
            readers=0 if self._dataset.is_local else data.requests,
            workers=self._config.workers or (cores if self._extractor.device.type == "cpu" else 2),
            quarantine=self._quarantine.add,
        )

    def _round(self, flow: Flow) -> Iterator[int]:
        """Makes the parts of all units that can be claimed; yields the pictures of each part once it is written."""
        claims: deque[Claim] = deque()
        writes: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1, "write") as writer:
            try:
                for features in flow.features(self._claimed(claims), self._check_signals):
                    writes.append(writer.submit(self._write, claims.popleft(), features))
                    if len(writes) > _WRITES_AHEAD:
                        yield writes.popleft().result()
                for write in writes:
                    yield write.result()
            finally:
                for claim in claims:
                    claim.release(done=False)

    def _claimed(self, claims: deque[Claim]) -> Iterator[Unit]:
        """Claims one unit after the other, as they are asked for."""
        for unit in in_turn(self._output.parts.missing(), self._rank.number, self._rank.world_size):
            if self._output.finished:
                return
            if (claim := self._output.parts.claim(unit)) is not None:
                claims.append(claim)
                yield unit

    def _write(self, claim: Claim, features: Features) -> int:
        """Writes a part; returns its pictures."""
        done = False
        try:
            with self._output.parts.writing(claim.unit) as file:
                write_part(file, features, self._schema, self._output.parts.facts)
            done = True
        finally:
            claim.release(done)
        return len(features.unit)

    def _pause(self) -> None:
        """Waits for a moment, for the units of other ranks or for the rank that joins the parts."""
        self._check_signals()
        time.sleep(_POLL_SECONDS)

    def _check_signals(self) -> None:
        if self._interruption is not None and self._interruption.requested is not None:
            raise _Interrupted(f"interrupted ({self._interruption.requested})")

    def _there(self) -> int:
        """Number of the samples whose part is there."""
        return self._samples if self._output.finished else self._samples - sum(map(len, self._output.parts.missing()))

    def _share(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units whose parts this rank looks into at its start."""
        return units[self._rank.number :: self._rank.world_size]

    def _facts(self) -> dict[str, Any]:
        """All that decides the features; parts of other facts are refused."""
        config, may_turn = self._config, self._dataset.manifest.stored_side is None  # a build that shrinks pictures has turned them
        return {
            "format": "context-encoder features 1",
            **({"orientation": "turned"} if may_turn and config.data.orientation == "turned" else {}),
            "data_set": f"{self._dataset.manifest.fingerprint:016x}",
            "samples": self._samples,
            "encoder": digest_of(self._encoder),
            "layer": self._extractor.layer,
            **{name: getattr(config, name) for name in ("pool", "crop", "batch", "part", "precision", "dtype")},
            "decoder": self._decoder.description,
        }

    def _summary(self, unreadable: int) -> dict[str, Any]:
        """The facts of the whole output.

        Raises:
            EmbedError: more samples are unreadable than allowed.
        """
        allowed = self._config.data.max_bad_fraction
        if unreadable > allowed * self._samples:
            raise EmbedError(
                f"{self._output.path}: {unreadable:,} of {counted(self._samples, 'sample is', 'samples are')} unreadable, "
                f"data.max_bad_fraction allows {allowed:g} of "
                f"them. They are named in {self._output.parts.folder / '_quarantine.jsonl'}. Build the data set again, or allow more"
            )
        encoder = {name: value for name, value in self._encoder.facts.to_mapping().items() if name not in ("layers", "format")}
        return {
            **self._output.parts.facts,
            "shape": list(self._extractor.shape),
            "dimensions": self._extractor.dimensions,
            "unreadable": unreadable,
            "classes": list(self._dataset.manifest.classes),
            "trained": encoder,
        }

    def _sentence(self) -> str:
        facts = self._output.facts()
        count, unreadable = facts["samples"] - facts["unreadable"], facts["unreadable"]
        what = f"{counted(count, 'picture')}, {counted(facts['dimensions'], 'value')} each of {facts['layer']} "
        what += f"(pool {facts['pool']}, {facts['dtype']})"
        left_out = (
            f"; {counted(unreadable, 'unreadable sample is', 'unreadable samples are')} left out, see {self._output.quarantine}"
            if unreadable
            else ""
        )
        return f"{self._output.path}: {what}{left_out}"

    def _warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def cutter_of(config: EmbedConfig, encoder: TrainedEncoder, decoder: Decoder) -> PictureCutter:
    """The way from a picture's bytes to the encoder's input."""
    shorter_side = encoder.facts.transform.shorter_side if config.crop == "scaled" else None
    return PictureCutter(decoder, shorter_side, config.data.max_pixels, config.data.orientation == "turned")


def _as_read(config: EmbedConfig) -> DataConfig:
    """The settings of the data as its readers get them: every byte is read once, so nothing is cached."""
    return dataclasses.replace(config.data, cache="none")
