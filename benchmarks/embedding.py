"""The speed of launch/embed.py beside its loader alone and its network alone.

python -m benchmarks.embedding [--rounds 5] [--pictures 512] [--cases 12:1:1 96:1:1 96:2:2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import measured_here
from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.evaluation.embed import cutter_of, embed
from pipeline.evaluation.embedding.flow import Flow
from pipeline.evaluation.embedding.network import Extractor, device_of, one_core
from pipeline.evaluation.embedding.settings import EmbedConfig
from pipeline.evaluation.embedding.settings import parse as parse_embed
from pipeline.evaluation.embedding.units import cut_units
from pipeline.evaluation.encoder import read_encoder
from pipeline.evaluation.rank import Rank
from pipeline.stream.counters import Counters
from pipeline.stream.dataset import open_datasets
from pipeline.stream.decode.decoder import make_decoder
from pipeline.training.checkpoint.store import Checkpoint, write
from shards.store import Store

ROOT = Path(__file__).resolve().parent.parent
TARGET = 0.9


@dataclass(frozen=True)
class Case:
    """One line of the table: maps of the first convolution, threads that decode, batches in the network at the same time."""

    width: int
    threads: int
    workers: int

    @classmethod
    def of(cls, text: str) -> Case:
        """Reads WIDTH:THREADS:WORKERS."""
        width, threads, workers = map(int, text.split(":"))
        return cls(width, threads, workers)


@dataclass(frozen=True)
class Speed:
    """Pictures a second on the clock, and milliseconds of CPU time a picture."""

    rate: float
    cpu: float


def timed(work: Callable[[], int]) -> Speed:
    """Times work that returns its number of pictures."""
    began, cpu = time.perf_counter(), time.process_time()
    pictures = work()
    return Speed(pictures / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / pictures)


class Sides:
    """The three things that take turns in one process: the loader, the network, and both in `embed`."""

    def __init__(self, case: Case, encoder: Path, shards: Path, folder: Path, pictures: int) -> None:
        more = ["--limit", str(pictures), "--part", "256", "--workers", str(case.workers), "--data.threads", str(case.threads)]
        self.config: EmbedConfig = parse_embed([str(encoder), str(folder / "out.parquet"), "--data.shards", str(shards), *more])
        self.case, self.pictures = case, pictures
        self._encoder = read_encoder(encoder)
        self._extractor = Extractor(self._encoder, self.config, device_of(0))
        with self._flow() as flow:
            self._batches = list(flow.pictures(cut_units(pictures, 256)))

    @contextmanager
    def _flow(self) -> Iterator[Flow]:
        (dataset,) = open_datasets(self.config.data, 0, Counters())
        cutter = cutter_of(self.config, self._encoder, make_decoder())
        side = self._encoder.facts.transform.side
        with Flow(dataset, cutter, self._extractor, side, self.config.batch, self.case.threads, 0, self.case.workers, print) as flow:
            yield flow
        dataset.close()

    def loader(self) -> Speed:
        """Reads and decodes, and drops the pictures."""
        with self._flow() as flow:
            return timed(lambda: sum(map(len, flow.pictures(cut_units(self.pictures, 256)))))

    def network(self) -> Speed:
        """Computes the features of pictures in memory."""
        with ThreadPoolExecutor(self.case.workers, initializer=one_core) as pool:
            return timed(lambda: sum(map(len, pool.map(lambda batch: self._extractor(batch, str), self._batches))))

    def both(self) -> Speed:
        """Embeds, from the first unit to the file; reading the encoder, which is once for any number of pictures, is not timed."""
        output = Path(self.config.output)
        output.unlink(missing_ok=True)
        empty = replace(self.config, limit=1, output=str(output.with_name("one.parquet")))
        Path(empty.output).unlink(missing_ok=True)
        cpu = time.process_time()
        embed(empty, Rank())
        once = time.process_time() - cpu
        cpu = time.process_time()
        outcome = embed(self.config, Rank())
        return Speed(outcome.pictures / outcome.seconds, 1000 * (time.process_time() - cpu - once) / outcome.pictures)


def measure(sides: Sides, rounds: int) -> str:
    """Measures a case in rounds, in which the three sides take turns; returns the line of the table."""
    names = ("loader", "network", "both")
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for number in range(rounds):
        for name in (*names[number % 3 :], *names[: number % 3]):
            found[name].append(getattr(sides, name)())
    ratios = [
        together.rate / min(loader.rate, network.rate)
        for loader, network, together in zip(found["loader"], found["network"], found["both"], strict=True)
    ]
    rates = [statistics.median(speed.rate for speed in found[name]) for name in names]
    cpus = [min(speed.cpu for speed in found[name]) for name in names]
    ratio, case = statistics.median(ratios), sides.case
    cells = [f"{case.width}", f"{case.threads}", f"{case.workers}", *(f"{rate:.0f}" for rate in rates)]
    cells += [f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", "yes" if ratio >= TARGET else "no"]
    cells += [*(f"{cpu:.2f}" for cpu in cpus), f"{cpus[2] / (cpus[0] + cpus[1]):.2f}"]
    return f"| {' | '.join(cells)} |"


def build(photographs: Path, folder: Path, pictures: int) -> Path:
    """Builds shards of the photographs with a shorter side of 256, each so often that there are `pictures` or more."""
    there = sum(path.is_file() for path in photographs.rglob("*"))
    (folder / "pictures").mkdir()
    for number in range(-(-pictures // there)):
        (folder / "pictures" / str(number)).symlink_to(photographs.resolve())
    command = [sys.executable, "-m", "shards", "build", str(folder / "pictures"), str(folder / "set"), "--shard-size", "200"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "set"


def write_run(folder: Path, width: int) -> Path:
    """Writes a run whose checkpoint holds an untrained encoder; the speed of a network does not depend on its weights."""
    config = parse(recipes.SETTINGS, ["--recipe", "features", "--method.width", str(width), "--data.shards", "none"])
    recipe = recipes.make(config.recipe, config.method, config.seed)
    position = {"epoch": 0, "consumed": 0, "lanes": 64, "data_set": 0}
    facts = {"recipe": config.recipe, "position": position, "config": to_mapping(config), "decoder": "", "torch": str(torch.__version__)}
    tensors = {player.name: player.network.state_dict() for player in recipe.players}
    write(Store(str(folder / f"run-{width}" / "checkpoints")), Checkpoint(1, facts, tensors))
    return folder / f"run-{width}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Measures launch/embed.py beside its loader alone and its network alone.")
    default = Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data")) / "imagenet_sample"
    parser.add_argument("--photographs", type=Path, default=default, help="folder of pictures")
    parser.add_argument("--pictures", type=int, default=512, help="pictures of a measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
    parser.add_argument(
        "--cases", nargs="+", type=Case.of, default=[Case(12, 1, 1), Case(96, 1, 1), Case(96, 2, 2)], metavar="WIDTH:THREADS:WORKERS"
    )
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        shards = build(options.photographs, Path(scratch), options.pictures)
        for case in options.cases:
            sides = Sides(case, write_run(Path(scratch), case.width), shards, Path(scratch), options.pictures)
            rows.append(measure(sides, options.rounds))
    print(f"\n{measured_here()}; torch {torch.__version__}, {options.pictures} pictures, {options.rounds} rounds\n")
    print(
        "| width | decoding threads | workers | loader img/s | network img/s | embed img/s | embed / slower of both | 0.9 met "
        "| loader CPU ms | network CPU ms | embed CPU ms | embed / sum |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
