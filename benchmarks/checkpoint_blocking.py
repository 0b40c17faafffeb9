"""Measures how long an asynchronous save blocks the training, beside a synchronous save of the same state.

One process trains the features recipe at full size with Adam. It saves its real state to a local folder and to an S3 server (SeaweedFS)
on the loopback interface; asynchronous and synchronous saves alternate. Prints one Markdown table.

    python -m benchmarks.checkpoint_blocking
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import measured_here
from launch.local.object_store import SeaweedFS
from pipeline import recipes
from pipeline.config import parse
from pipeline.training.checkpoint.store import Checkpoint, CheckpointStore, SaveOutcome, write
from pipeline.training.engine.optimiser_state import make_optimiser, state_tensors
from shards.store import Store

_SIDE = 227


@dataclass
class Figures:
    """Measurements of one store and one state, in seconds, one entry per save or step."""

    first: float = 0.0
    blocked: list[float] = field(default_factory=list)
    exported: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    synchronous: list[float] = field(default_factory=list)
    steps_alone: list[float] = field(default_factory=list)
    steps_beside: list[float] = field(default_factory=list)
    megabytes: float = 0.0


class Training:
    """The features recipe with its optimiser, trained on one batch of noise again and again."""

    def __init__(self, batch: int, copies: int) -> None:
        config = parse(recipes.SETTINGS, ["--data.shards", "none"])
        recipe = recipes.make("features", config.method, 0)
        (self.player,) = recipe.players
        self.network = self.player.network.train()
        self.optimiser = make_optimiser(self.player.optimiser, list(self.network.parameters()))
        self.copies = copies
        images = torch.randint(0, 256, (batch, _SIDE, _SIDE, 3), dtype=torch.uint8)
        masks = torch.zeros(batch, _SIDE, _SIDE, dtype=torch.bool)
        masks[:, 60:160, 60:160] = True
        self.views = recipe.views(images, masks, None, torch.arange(batch))

    def step(self) -> float:
        """Takes one step; returns its seconds."""
        began = time.perf_counter()
        losses = self.player.loss(self.views, {self.player.name: self.network})
        torch.autograd.backward(losses.total.mean())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns the state of a checkpoint `copies` times over, to show how the figures grow with its size."""
        parts = {"context_encoder": self.network.state_dict(), "context_encoder.optimiser": state_tensors(self.network, self.optimiser)}
        return {f"{name}.{copy}" if copy else name: part for copy in range(self.copies) for name, part in parts.items()}


def measure(store: Store, training: Training, rounds: int, steps: int) -> Figures:
    """Alternates asynchronous saves, during which the training goes on, a few steps without a save, and synchronous saves."""
    found, reports = Figures(), list[SaveOutcome]()
    checkpoints = CheckpointStore(store, keep_last=1, report=reports.append)
    beside = Store(f"{store.url}/synchronous", store.options)
    for number in range(-1, rounds):
        training.step()
        began = time.perf_counter()
        checkpoints.save(Checkpoint(number + 1, {}, training.state()))
        blocked = time.perf_counter() - began
        taken = []
        while len(reports) < number + 2:  # every step that begins while the save is being written
            taken.append(training.step())
        checkpoints.wait(must_succeed=True)
        if number < 0:  # left out: the first save allocates the memory of the snapshot and connects to the store
            found.first = blocked
            write(beside, Checkpoint(0, {}, training.state()))
            continue
        found.blocked.append(blocked)
        found.steps_beside += taken
        found.steps_alone += [training.step() for _ in range(steps)]
        began = time.perf_counter()
        write(beside, Checkpoint(number + 1, {}, training.state()))
        found.synchronous.append(time.perf_counter() - began)
        beside.delete("")
    found.exported = [report.blocked_seconds for report in reports[1:]]
    found.waited = [report.waited_seconds for report in reports[1:]]
    found.behind = [report.seconds for report in reports[1:]]
    found.megabytes = reports[-1].bytes / 1e6
    return found


def _milliseconds(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return f"{statistics.median(values) * 1000:.1f} ({min(values) * 1000:.1f}-{max(values) * 1000:.1f})"


def _row(name: str, found: Figures) -> str:
    ratios = [blocked / synchronous for blocked, synchronous in zip(found.blocked, found.synchronous, strict=True)]
    ratio = f"{statistics.median(ratios):.1%} ({min(ratios):.1%}-{max(ratios):.1%})"
    cells = [
        name,
        f"{found.megabytes:.0f}",
        _milliseconds(found.blocked),
        _milliseconds(found.exported),
        f"{found.first * 1000:.1f}",
        _milliseconds(found.synchronous),
        ratio,
        "yes" if statistics.median(ratios) < 0.1 else "no",
        _milliseconds(found.behind),
        _milliseconds(found.steps_alone),
        _milliseconds(found.steps_beside),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Measures how long an asynchronous save blocks the training, beside a synchronous save.")
    parser.add_argument("--rounds", type=int, default=9, help="saves of either kind, for each line")
    parser.add_argument("--steps", type=int, default=5, help="steps without a save, in each round")
    parser.add_argument("--batch", type=int, default=4, help="pictures per step")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8], help="numbers of copies of the state to save, one line each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, as training.threads")
    parser.add_argument("--folder", help="folder of the local checkpoints (default: a temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder))
        server = stack.enter_context(SeaweedFS(Path(folder) / "server"))
        for copies in arguments.copies:
            training = Training(arguments.batch, copies)
            stores = {
                "local folder": Store(f"{folder}/checkpoints-{copies}"),
                "S3 on the loopback interface": Store(f"{server.make_bucket(f'checkpoints-{copies}')}/run", server.options),
            }
            for name, store in stores.items():
                rows.append(_row(name, measure(store, training, arguments.rounds, arguments.steps)))
    print(f"{measured_here()}; torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds\n")
    print(
        "| to | MB | blocked ms | exported ms | first save ms | synchronous ms | blocked / synchronous | under 10 % "
        "| written behind ms | step alone ms | step beside a save ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
