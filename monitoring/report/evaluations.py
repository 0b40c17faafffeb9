"""The evaluations of a run on held-back pictures, read in one pass and bounded memory.

A line of `evaluation.jsonl` counts if its step counts, by the rule of `monitoring.run_files.last_counted_steps`. Figures are compared only
with those on the same choice of pictures, and of several lines of one step the last counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from monitoring.report.attempts import Attempts
from monitoring.report.curves import Bucket, Curve, Curves
from monitoring.report.lines import Lines, integer, number
from monitoring.run_files import better_than_guess

MOST_EVALUATIONS = 240
"""Largest number of evaluations that are kept of a run; of more, every second, fourth, ... one and the newest are."""
_MOST_BASELINES, _MOST_LAYERS = 4, 64
_MOST_CHOICES, _LONGEST_CHOICE = 16, 200  # choices of pictures that a run has, and letters of a digest
REPEATED = ("reconstruction", "cross_entropy")
"""Parts of the training's losses that evaluations compute of held-back pictures."""
_LARGEST = 1e30  # larger figures count as infinite


@dataclass(frozen=True)
class Scores:
    """Figures of paintings over the dropped pixels of the held-back pictures, or of named classes; NaN where one is not known.

    Attributes:
        loss: reconstruction loss or cross-entropy, in the unit of the training's.
        l1, l2: mean absolute and squared error in per cent.
        psnr: peak signal-to-noise ratio in dB.
        accuracy: fraction of the pictures whose class is named correctly.
    """

    loss: float = math.nan
    l1: float = math.nan
    l2: float = math.nan
    psnr: float = math.nan
    accuracy: float = math.nan

    @property
    def names_a_class(self) -> bool:
        """True for the figures of a recipe that classifies."""
        return math.isfinite(self.accuracy)

    @property
    def error(self) -> float:
        """The figure by which networks and baselines are compared, per cent: L1, or the wrongly named classes."""
        return 100 * (1 - self.accuracy) if self.names_a_class else self.l1


@dataclass(frozen=True)
class Probe:
    """Accuracy of two small classifiers on the frozen features, as fractions.

    Attributes:
        classes: number of classes.
        chance: accuracy of a guess, which is the fraction of the largest class.
        knn, ridge: accuracy by the nearest neighbours, and by a ridge regression.
    """

    classes: int
    chance: float
    knn: float
    ridge: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: steps of the run that were done; 0 is the random start.
        pictures: number of held-back pictures.
        scores: figures of the network.
        baselines: figures of the baselines, by name.
        layers: (name, maps, dead maps) of each layer.
        output_spread: deviation over pictures of the mean painted colour, over that of the truth.
        feature_dimensions: participation ratio of the features.
        feature_spread: mean distance of the features from their mean, over their mean length.
        probe: probe of the features; None where labels are not known.
        seconds: duration of the evaluation.
        unlabelled: number of the pictures that are left out because their class is not known.
        choice: digest of the pictures; empty where the line has none. Only figures of equal digests are compared.
    """

    step: int
    pictures: int = 0
    scores: Scores = field(default_factory=Scores)
    baselines: Mapping[str, Scores] = field(default_factory=dict)
    layers: tuple[tuple[str, int, int], ...] = ()
    output_spread: float = math.nan
    feature_dimensions: float = math.nan
    feature_spread: float = math.nan
    probe: Probe | None = None
    seconds: float = math.nan
    choice: str = ""
    unlabelled: int = 0

    @property
    def names_a_class(self) -> bool:
        """True for a recipe that classifies, also where no picture's class is known, so that guessing alone has an accuracy."""
        return self.scores.names_a_class or any(each.names_a_class for each in self.baselines.values())

    @property
    def stronger(self) -> str:
        """Name of the baseline with the smaller error, which decides whether the run learns; empty where there is none."""
        errors = {name: scores.error for name, scores in self.baselines.items() if math.isfinite(scores.error)}
        return min(errors, key=errors.__getitem__, default="")

    @property
    def gain(self) -> float:
        """Fraction of the stronger baseline's error that the network has taken away; negative where the network is worse, else NaN."""
        error = self.baselines[self.stronger].error if self.stronger else math.nan
        return 1 - self.scores.error / error if error > 0 else math.nan

    @property
    def beats_baselines(self) -> bool | None:
        """True where the network's L1 is below that of every baseline, or its accuracy above by more than luck; None where no baseline is
        known, or the pictures of a known class can't tell."""
        if not self.stronger:
            return None
        stronger = self.baselines[self.stronger]
        if stronger.names_a_class:
            return better_than_guess(self.scores.accuracy, stronger.accuracy, self.pictures - self.unlabelled)
        return self.scores.l1 < stronger.l1

    @property
    def dead(self) -> float:
        """Fraction of the maps of all layers that are dead; NaN where no maps are known."""
        maps = sum(maps for _, maps, _ in self.layers)
        return sum(dead for _, _, dead in self.layers) / maps if maps else math.nan


@dataclass
class Evaluations:
    """Evaluations of a run whose steps count, on the pictures of the newest one.

    Attributes:
        rows: evaluations by step; of a long run, evenly thinned.
        count: number of evaluations that count.
        undone: number of evaluations of steps that a later attempt took back.
        others: number of evaluations on another choice of pictures, which are left out everywhere else.
        start: evaluation of the random start; None where there is none.
        newest: evaluation of the greatest step; None where there is none.
        best: evaluation with the smallest error; None where no error is finite.
    """

    rows: list[Evaluation] = field(default_factory=list)
    count: int = 0
    undone: int = 0
    others: int = 0
    start: Evaluation | None = None
    newest: Evaluation | None = None
    best: Evaluation | None = None

    @property
    def judged(self) -> Evaluation | None:
        """The newest evaluation of a network that has been trained; None where there is none."""
        return self.newest if self.newest is not None and self.newest.step else None

    def curve(self, curves: Curves, value: Callable[[Evaluation], float]) -> Curve:
        """Returns one figure over the steps, in the buckets of a run's other curves."""
        found = Curve()
        for row in self.rows:
            figure = value(row)
            if abs(figure) < _LARGEST:  # false for NaN
                index = min(row.step // curves.width, curves.top)
                found.counted.setdefault(index, Bucket()).join(Bucket(1, figure, figure, figure))
                found.latest = figure
        return found


def read(lines: Lines, attempts: Attempts) -> Evaluations:
    """Reads the evaluations of a run.

    Args:
        lines: lines of `evaluation.jsonl`; those without a step and a loss are counted as damaged.
        attempts: attempts of the run, whose steps are decided.
    """
    found, kept, odd, place, distance = Evaluations(), dict[int, tuple[int, Evaluation]](), 0, 0, 1
    tallies: dict[str, _Tally] = {}
    for line in lines:
        step, attempt = integer(line.get("step")), integer(line.get("attempt"))
        if step is None or "loss" not in line:
            odd += 1
            continue
        if attempt is not None and attempt in attempts and step > attempts[attempt].limit:
            found.undone += 1
            continue
        row = _evaluation(step, line)
        kept.pop(step, None)  # an attempt may evaluate again the step that it continues from
        if place % distance == 0:
            kept[step] = place, row
        place += 1
        while len(kept) >= MOST_EVALUATIONS:
            distance *= 2
            kept = {each: (number, other) for each, (number, other) in kept.items() if number % distance == 0}
        if found.newest is None or step >= found.newest.step:
            if found.newest is not None and step > found.newest.step:
                _tally(tallies, found.newest.choice).settle(found.newest)
            found.newest = row
        else:
            _tally(tallies, row.choice).settle(row)
        if step == 0:
            found.start = row
        _tally(tallies, row.choice).count += 1
    lines.damaged += odd
    if found.newest is not None:
        kept[found.newest.step] = place, found.newest
        tally = _tally(tallies, found.newest.choice)
        tally.settle(found.newest)
        found.count, found.others, found.best = tally.count, place - tally.count, tally.best
        found.start = found.start if found.start is not None and found.start.choice == found.newest.choice else None
        found.rows = [kept[step][1] for step in sorted(kept) if kept[step][1].choice == found.newest.choice]
    return found


@dataclass
class _Tally:
    """Number of the evaluations on one choice of pictures, and the one with the smallest error of those that no later line replaces."""

    count: int = 0
    best: Evaluation | None = None

    def settle(self, row: Evaluation) -> None:
        if row.scores.error < (self.best.scores.error if self.best else math.inf):  # false for NaN
            self.best = row


def _tally(tallies: dict[str, _Tally], choice: str) -> _Tally:
    if choice not in tallies and len(tallies) >= _MOST_CHOICES:
        del tallies[next(iter(tallies))]
    return tallies.setdefault(choice, _Tally())


def _evaluation(step: int, line: Mapping[str, Any]) -> Evaluation:
    baselines, probe = line.get("baselines"), line.get("probe")
    named = islice(baselines.items(), _MOST_BASELINES) if isinstance(baselines, Mapping) else ()
    return Evaluation(
        step,
        integer(line.get("pictures")) or 0,
        _scores(line),
        {str(name): _scores(scores) for name, scores in named if isinstance(scores, Mapping)},
        _layers(line.get("maps"), line.get("dead_maps")),
        _figure(line, "output_spread"),
        _figure(line, "feature_dimensions"),
        _figure(line, "feature_spread"),
        _probe(probe) if isinstance(probe, Mapping) else None,
        _figure(line, "seconds"),
        str(line.get("choice") or "")[:_LONGEST_CHOICE],
        integer(line.get("unlabelled")) or 0,
    )


def _scores(scores: Mapping[str, Any]) -> Scores:
    return Scores(*(_figure(scores, key) for key in ("loss", "l1", "l2", "psnr", "accuracy")))


def _layers(maps: object, dead: object) -> tuple[tuple[str, int, int], ...]:
    if not isinstance(maps, Mapping) or not isinstance(dead, Mapping):
        return ()
    counts = [(str(name), integer(count), integer(dead.get(name))) for name, count in islice(maps.items(), _MOST_LAYERS)]
    return tuple((name, count, lost) for name, count, lost in counts if count and lost is not None and lost <= count)


def _probe(probe: Mapping[str, Any]) -> Probe:
    return Probe(integer(probe.get("classes")) or 0, *(_figure(probe, key) for key in ("chance", "knn", "ridge")))


def _figure(values: Mapping[str, Any], key: str) -> float:
    """Returns a figure of a row; NaN where it is none, and infinity where it is larger than any that can be drawn."""
    value = number(values.get(key))
    if value is None:
        return math.nan
    return value if abs(value) < _LARGEST or math.isnan(value) else math.copysign(math.inf, value)
