"""Says whether a run learns, from its evaluations on held-back pictures: a sentence at each, and a report of what is wrong.

A problem is an event in the run folder, a line on the console and a metric, once, however long it lasts. Nothing is judged before
`evaluation.judge_after` steps, because every run begins with paintings that one colour beats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from monitoring.metrics.definitions import PROBLEMS
from monitoring.metrics.run_metrics import RunMetrics
from monitoring.run_files import (
    BASELINES,
    EVALUATION,
    FEWEST_PICTURES,
    GUESSES,
    LEAST_FEATURE_DIMENSIONS,
    LEAST_FEATURE_SPREAD,
    LEAST_OUTPUT_SPREAD,
    MOST_DEAD,
    better_than_guess,
    least_accuracy,
    undecided,
    with_nans,
)
from pipeline.config import EvaluationConfig
from pipeline.training.record.run_folder import Lines, RunFolder
from shards.counting import counted

ADVICE = "Another learning rate, a longer warm-up, clipping or batch-norm help; docs/learning.md says which"


def stronger_baseline(row: Mapping[str, Any]) -> str:
    """Names the baseline with the smaller L1, or with the higher accuracy, in a row of `evaluation.jsonl`."""
    baselines: Mapping[str, Mapping[str, float]] = row["baselines"]
    if "accuracy" in row:
        return max(baselines, key=lambda name: baselines[name]["accuracy"])
    return min(baselines, key=lambda name: baselines[name]["l1"])


def sentence(row: Mapping[str, Any]) -> str:
    """Compares the networks with the stronger baseline, for a person.

    Args:
        row: row of `evaluation.jsonl`.
    """
    found = _accuracy(row) if "accuracy" in row else _error(row)
    if (probe := row.get("probe")) is not None:
        guessed = f"the largest of {counted(probe['classes'], 'class')}: {probe['chance']:.0%}"
        found += f"; labels by k-NN {probe['knn']:.0%}, by ridge {probe['ridge']:.0%} ({guessed})"
    return found


def _error(row: Mapping[str, Any]) -> str:
    name, gain = stronger_baseline(row), row["gain"]
    compared = f"{abs(gain):.0%} {'better' if gain > 0 else 'worse'}" if gain == gain else "no number"  # noqa: PLR0124 (NaN)
    return f"held back L1 {row['l1']:.4g} %, {BASELINES[name]} {row['baselines'][name]['l1']:.4g} %: {compared}"


def _accuracy(row: Mapping[str, Any]) -> str:
    name = stronger_baseline(row)
    guess, better = row["baselines"][name]["accuracy"], better_than_baselines(row)
    if row["unlabelled"] == row["pictures"]:
        return f"no accuracy on held-back pictures, because none of {counted(row['pictures'], 'picture')} has a label"
    if better is None:
        compared = undecided(guess, _known(row))
    elif better:
        compared = "better"
    else:
        least = least_accuracy(guess, _known(row))
        compared = f"no better: it takes more than {100 * least:.3g} %" if row["accuracy"] > guess else "no better"
    found = f"held back accuracy {100 * row['accuracy']:.3g} %, {GUESSES[name]} {100 * guess:.3g} %: {compared}"
    return found + (f"; {counted(row['unlabelled'], 'picture has', 'pictures have')} no label" if row["unlabelled"] else "")


def _known(row: Mapping[str, Any]) -> int:
    """The number of pictures whose class is known."""
    return int(row["pictures"] - row["unlabelled"])


def _beside(row: Mapping[str, Any]) -> str:
    """The figures of the random start, for a person."""
    probe = row.get("probe")
    if "accuracy" not in row:
        own = f"{row['l1']:.4g} %"
    else:
        own = "no figure" if math.isnan(row["accuracy"]) else f"{100 * row['accuracy']:.3g} %"
    return own + (f", k-NN {probe['knn']:.0%}, ridge {probe['ridge']:.0%}" if probe is not None else "")


def better_than_baselines(row: Mapping[str, Any]) -> bool | None:
    """True if the networks beat the stronger baseline: in L1, or in accuracy by more than chance explains. False for NaN; None where the
    pictures of a known class can't tell."""
    if "accuracy" not in row:
        return bool(row["gain"] > 0)
    return better_than_guess(row["accuracy"], row["baselines"][stronger_baseline(row)]["accuracy"], _known(row))


def problems(row: Mapping[str, Any]) -> dict[str, str]:
    """Finds what is wrong with the networks of an evaluation.

    Args:
        row: row of `evaluation.jsonl`.

    Returns:
        A sentence for each problem, by its name in PROBLEMS.
    """
    found: dict[str, str] = {}
    if better_than_baselines(row) is False:
        found["baseline"] = _no_better(row)
    if row["pictures"] < FEWEST_PICTURES:
        return found
    maps, dead = row["maps"], row["dead_maps"]
    dying = [f"{dead[layer]} of {maps[layer]} in {layer}" for layer in maps if dead[layer] > MOST_DEAD * maps[layer]]
    if dying:
        found["dead_maps"] = f"Maps have died, which give the same for every picture: {', '.join(dying)}"
    if not row.get("output_spread", math.inf) >= LEAST_OUTPUT_SPREAD:  # true for NaN
        found["constant_output"] = (
            f"The paintings have nearly the same colour whatever the picture: it deviates by {row['output_spread']:.1%} of what the "
            "true colours do"
        )
    dimensions, spread = row.get("feature_dimensions", math.inf), row.get("feature_spread", math.inf)
    if not (dimensions >= LEAST_FEATURE_DIMENSIONS and spread >= LEAST_FEATURE_SPREAD):
        found["collapsed_features"] = (
            f"The features have collapsed: those of all pictures lie in {dimensions:.1f} dimensions, at {spread:.1%} of their length from "
            "their mean"
        )
    return found


def _no_better(row: Mapping[str, Any]) -> str:
    name = stronger_baseline(row)
    if "accuracy" in row:
        guess = row["baselines"][name]["accuracy"]
        least = least_accuracy(guess, _known(row))
        return (
            f"The named classes are right no more often than by {GUESSES[name]}: {100 * row['accuracy']:.3g} % against {100 * guess:.3g} %"
            f"{f', and {100 * least:.3g} % would be more than luck' if least < 1 else ''}, so the encoder has learned little"
        )
    what = {"constant": "one colour for all pictures", "visible_mean": "the mean colour of each picture's visible part"}[name]
    return (
        f"The paintings are no better than {what}: L1 {row['l1']:.4g} % against {row['baselines'][name]['l1']:.4g} %, so the "
        "encoder has learned little"
    )


class Learning:
    """The evaluations of one run, on rank 0.

    Args:
        settings: settings of the evaluation.
        folder: run folder, which gets rows and events.
        metrics: metrics of this rank.
        say: prints a line on the console.
    """

    def __init__(self, settings: EvaluationConfig, folder: RunFolder, metrics: RunMetrics, say: Callable[[str], None]) -> None:
        self._settings, self._folder, self._metrics, self._say = settings, folder, metrics, say
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._found: dict[str, str] = {}
        self._choice = self._why_not = ""

    def not_evaluated(self, why: str) -> None:
        """Says that the run is not evaluated, now and in the conclusion."""
        self._why_not = f"not evaluated on pictures that are not trained on: {why}"
        self._say(self._why_not)

    def resume(self, step: int, choice: str) -> None:
        """Takes over the evaluations of earlier attempts up to a step; what they reported is not reported again.

        Args:
            step: step that the attempt continues from. At 0 nothing is taken over, because the networks may be others.
            choice: digest of the pictures of this attempt. Evaluations on others are not taken over.
        """
        self._choice = choice
        rows = Lines(self._folder.path / EVALUATION) if step else ()
        self._rows = {int(row["step"]): with_nans(row) for row in rows if row.get("choice") == choice and row["step"] <= step}
        if self._rows:
            last = max(self._rows)
            self._metrics.evaluation(self._rows[last])
            self._found = self._judged(self._rows[last])
        for problem in PROBLEMS:
            self._metrics.learning(problem, problem in self._found)

    def has(self, step: int) -> bool:
        """True if the networks of a step have been evaluated."""
        return step in self._rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Reports an evaluation.

        Args:
            row: row of `evaluation.jsonl`.
        """
        step, before = row["step"], self._found
        self._rows[step] = row
        self._folder.evaluation(row)
        self._metrics.evaluation(row)
        self._say(f"step {step}: {sentence(row)}")
        self._found = self._judged(row)
        for problem in PROBLEMS:
            if problem in self._found and problem not in before:
                self._folder.event("not_learning", step=step, problem=problem, message=self._found[problem])
                self._say(f"step {step}: {self._found[problem]}. {ADVICE}")
            elif problem in before and problem not in self._found:
                self._folder.event("learning_again", step=step, problem=problem)
                self._say(f"step {step}: over now: {before[problem]}")
            self._metrics.learning(problem, problem in self._found)

    def conclusion(self) -> str:
        """Says, for the end of a run, what the newest evaluation found beside baseline and random start; empty without an evaluation."""
        if not self._rows:
            return self._why_not
        last = self._rows[max(self._rows)]
        start = self._rows.get(0)
        beside = f"; the random start had {_beside(start)}" if start is not None and last["step"] > 0 else ""
        lines = [f"{sentence(last)}{beside} (after step {last['step']}, {counted(last['pictures'], 'picture')} that were not trained on)"]
        found = self._judged(last)
        lines += [f"not learning: {found[problem]}. {ADVICE}" for problem in PROBLEMS if problem in found]
        if better_than_baselines(last) is False and not found and last["step"] < self._settings.judge_after:
            lines.append(f"too early to judge: evaluation.judge_after is {counted(self._settings.judge_after, 'step')}")
        return "\n".join(lines)

    def _judged(self, row: Mapping[str, Any]) -> dict[str, str]:
        return problems(row) if row["step"] >= max(1, self._settings.judge_after) else {}
