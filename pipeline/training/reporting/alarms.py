"""Reports what is wrong with a run that goes on: non-finite gradients, starvation and collapses.

Each change of state is an event in the run folder, a line on the console and a metric, once, however long the state lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from monitoring.metrics.run_metrics import RunMetrics
from pipeline.config import WatchdogConfig
from pipeline.recipes.player import Player
from pipeline.training.record.run_folder import RunFolder
from pipeline.training.reporting.health import CollapseWatch, Starvation
from shards.counting import counted


class Alarms:
    """The alarms of one rank.

    Args:
        limits: settings of the watches.
        players: players of the recipe, some of which declare a collapse.
        world_size: ranks of the run.
        folder: run folder, which gets the events.
        metrics: metrics of this rank.
        say: prints a line on the console.
    """

    def __init__(
        self,
        limits: WatchdogConfig,
        players: Sequence[Player],
        world_size: int,
        folder: RunFolder,
        metrics: RunMetrics,
        say: Callable[[str], None],
    ) -> None:
        self._limits, self._world_size, self._folder, self.metrics, self._say = limits, world_size, folder, metrics, say
        self._nonfinite = 0
        self._starvation = Starvation(limits.starving_share, limits.starving_seconds)
        self._starving_ranks = 0
        self._is_first_step = True
        steps = limits.collapse_steps
        self._collapses = {each.name: CollapseWatch(each.collapse, steps) for each in players if each.collapse is not None and steps}
        for player in self._collapses:
            metrics.collapsed(player, False)

    @property
    def starvation(self) -> tuple[int, int]:
        """Two integers that every step sums over the ranks: 1 if this rank starves, and its wait fraction in thousandths (0 otherwise)."""
        return (1, round(1000 * self._starvation.fraction)) if self._starvation.present else (0, 0)

    def check_numbers(self, step: int, skipped: Sequence[str]) -> None:
        """Reports non-finite gradients: every step is counted and printed, the first and the end of several in a row are events.

        Args:
            step: step that is done.
            skipped: players whose gradient was not finite.
        """
        if skipped:
            self.metrics.nonfinite()
            self._say(f"step {step}: a gradient of {', '.join(skipped)} is not finite, its weights stay as they were")
            if not self._nonfinite:
                self._folder.event("nonfinite", step=step, players=list(skipped))
            self._nonfinite += 1
        elif self._nonfinite:
            self._folder.event("nonfinite_over", step=step, steps=self._nonfinite)
            self._nonfinite = 0

    def check_starvation(self, step: int, seconds: float, wait_seconds: float, ranks: int, thousandths: int) -> None:
        """Reports ranks that wait for their data most of the time: the first rank stands for all, and the end of the last one is reported.

        Args:
            step: step that is done.
            seconds: duration of the step on this rank, the wait included.
            wait_seconds: part of `seconds` that was spent waiting for the batch.
            ranks: number of starving ranks when the step began.
            thousandths: sum of their wait fractions, in thousandths.
        """
        if self._is_first_step:  # it waited for the first batch, because nothing was prepared ahead
            self._is_first_step = False
        elif self._starvation.add(seconds, wait_seconds):
            self.metrics.starving(self._starvation.present)
        before, self._starving_ranks = self._starving_ranks, ranks
        if ranks and not before:
            fraction = thousandths / 1000 / ranks
            self._folder.event("starving", step=step, ranks=ranks, share=round(fraction, 3))
            self._say(
                f"step {step}: {ranks} of {counted(self._world_size, 'rank waits', 'ranks wait')} for data {fraction:.0%} of the time. "
                "If processor cores are idle, raise data.threads; if the store is slow, data.requests and "
                "data.ready_batches; docs/watchdogs.md shows how to find out"
            )
        elif before and not ranks:
            self._folder.event("starving_over", step=step)
            self._say(f"step {step}: no rank starves for data now")

    def check_collapse(self, step: int, losses: Mapping[str, Mapping[str, float]]) -> None:
        """Reports players whose losses look like a collapse, and those that have recovered.

        Args:
            step: step of the losses.
            losses: player -> part -> mean over the global batch.
        """
        for player, watch in self._collapses.items():
            if not watch.add(losses.get(player, {})):
                continue
            self.metrics.collapsed(player, watch.collapsed)
            means = {part: round(value, 6) for part, value in watch.means.items()}
            shown = ", ".join(f"{part} {value:.4g}" for part, value in means.items())
            if watch.collapsed:
                self._folder.event("collapse", step=step, player=player, means=means, steps=self._limits.collapse_steps)
                self._say(f"step {step}: the {player} has collapsed ({shown}, means of the steps before). {watch.collapse.advice}")
            else:
                self._folder.event("collapse_over", step=step, player=player, means=means)
                self._say(f"step {step}: the {player} has recovered from its collapse ({shown})")
