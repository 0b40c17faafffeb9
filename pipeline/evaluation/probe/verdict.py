"""Verdicts: whether features are better than a random start's, and whether a set of pictures is large enough to tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.probe.intervals import Interval, difference
from shards.counting import counted

Verdict = Literal["better", "not distinguishable", "worse", "too few pictures"]
SMALLEST_GAIN = 0.04
"""Half-width of an interval around 0 above which it says nothing: published probes of context encoders are 1 to 4 points above those of
random starts (Zhang et al. 2017, arXiv:1611.09842)."""
FEWEST_PICTURES = 1000
"""Pictures below which there is no verdict: the difference of two classifiers that disagree on four pictures of ten is known to 3.9 points
with 1,000 pictures, and to 8.4 points with 220."""
FEWEST_OF_A_CLASS = 10


@dataclass(frozen=True)
class Comparison:
    """Features beside others on the same pictures.

    Attributes:
        difference: difference of the accuracies, in [-1, 1].
        verdict: verdict on the first features; "better" and "worse" hold against every one of the others.
    """

    difference: Interval
    verdict: Verdict


def compare(right: NDArray[np.bool_], others: Sequence[NDArray[np.bool_]], comparisons: int, too_few: bool) -> Comparison:
    """Compares a classifier's answers on some features with its answers on others.

    Args:
        right: bool (pictures,), True where the picture was classified rightly.
        others: the same for each of the others, such as several random starts.
        comparisons: number of comparisons that are made together; their intervals hold all at once with 95 % (Bonferroni).
        too_few: the set is too small for a verdict.

    Returns:
        The comparison with the one of the others that is hardest to beat.
    """
    found = [difference(right, other, 1 - 0.05 / comparisons) for other in others]
    hardest = min(found, key=lambda each: each.value)
    verdict: Verdict = "not distinguishable"
    if too_few:
        verdict = "too few pictures"
    elif all(each.lower > 0 for each in found):
        verdict = "better"
    elif all(each.upper < 0 for each in found):
        verdict = "worse"
    elif max(difference(right, other).half_width for other in others) > SMALLEST_GAIN:
        verdict = "too few pictures"
    return Comparison(hardest, verdict)


def too_few(labels: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """A sentence if a set of pictures is too small to tell an encoder from its random start; None if it is large enough.

    Args:
        labels: int64 (pictures,), class of every picture.
        classes: names of the classes.
    """
    counts = np.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    around = 196 * (0.4 / len(labels)) ** 0.5
    if len(labels) < FEWEST_PICTURES:
        return (
            f"{counted(len(labels), 'picture')} of {counted(len(classes), 'class')} are too few for a verdict: with so many, "
            f"a difference to the random start is known to about {around:.1f} points (95 %), and published gains are 1 to 4 points. "
            f"Probe with {counted(FEWEST_PICTURES, 'picture')} or more; the figures above are no verdict."
        )
    if counts[smallest] < FEWEST_OF_A_CLASS:
        return (
            f"the class {classes[smallest]} has {counted(counts[smallest], 'picture')}, which is too few for a verdict: give every class "
            f"{FEWEST_OF_A_CLASS} or more, or leave the class out; the figures above are no verdict."
        )
    return None
