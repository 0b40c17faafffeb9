"""A finished probe as plain values for JSON, and as tables and sentences for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.evaluation.probe import logistic, ridge
from pipeline.evaluation.probe.cross_validation import Judged
from pipeline.evaluation.probe.features import RIVALS
from pipeline.evaluation.probe.intervals import Interval, accuracy
from pipeline.evaluation.probe.probe import CHOSEN, ENCODER, ProbeResult
from pipeline.evaluation.probe.verdict import Comparison, compare
from shards.counting import counted

_TITLES = {
    "ridge": "Ridge",
    "logistic": f"Logistic regression (lbfgs, tolerance {logistic.TOLERANCE:g})",
    "neighbours": "k-nearest neighbours (exact, cosine)",
}
_CHOICE = {"ridge": "penalty", "logistic": "penalty", "neighbours": "number of neighbours"}
_SENTENCES = {
    "better": "is better than the random start",
    "worse": "is worse than the random start",
    "not distinguishable": "can't be told from the random start",
    "too few pictures": "has no verdict, because the pictures are too few",
}


def as_mapping(result: ProbeResult) -> dict[str, Any]:
    """All figures of a probe as plain values; accuracies and differences are in [0, 1] and [-1, 1]."""
    facts, settings = result.encoder.facts, result.settings
    counts = np.bincount(result.pictures.labels, minlength=len(result.pictures.classes))
    by_layer = len(result.layers) * len(settings.classifiers)
    return {
        "encoder": {"recipe": facts.recipe, "step": facts.step, "layout": facts.layout, "seed": facts.seed, "side": facts.side},
        "pictures": {
            "count": len(result.pictures.labels),
            "classes": dict(zip(result.pictures.classes, counts.tolist(), strict=True)),
            "chance": float(counts.max() / counts.sum()),
            "notes": list(result.pictures.notes),
        },
        "settings": {
            **{name: value for name, value in asdict(settings).items() if name not in ("scratch", "layers")},
            "layers": list(result.layers),
            "test_folds": [len(fold.test) for fold in result.folds],
            "penalties": {"ridge": list(ridge.PENALTIES), "logistic": list(logistic.PENALTIES)},
        },
        "accuracies": [
            {"features": source, "layer": layer, "values": result.values.get((source, layer)), "classifier": name, **_answers(judged)}
            for (source, layer), answers in result.judged.items()
            for name, judged in answers.items()
        ],
        "differences": [
            {"layer": layer, "classifier": name, "to": rival, "comparisons": count, **_compared(comparison)}
            for name in settings.classifiers
            for layer in (*result.layers, CHOSEN)
            for count in ((len(settings.classifiers) if layer == CHOSEN else by_layer),)
            for rival, comparison in _comparisons(result, layer, name, count)
        ],
        "too_few": result.too_few,
        "grid_ends": _grid_ends(result),
    }


def _answers(judged: Judged) -> dict[str, Any]:
    return {
        "accuracy": _interval(accuracy(judged.right)),
        "chosen": list(judged.chosen),
        "accuracy_within_training": list(judged.inner_accuracies),
        "at_end_of_grid": list(judged.ends),
    }


def _comparisons(result: ProbeResult, layer: str, classifier: str, count: int) -> list[tuple[str, Comparison]]:
    """The encoder's layer beside the random starts, the hardest to beat of them, and beside each rival without a network."""
    right = result.judged[ENCODER, layer][classifier].right
    starts = [source for source in result.sources if source not in (ENCODER, *RIVALS)]
    others = [result.judged[source, layer][classifier].right for source in starts]
    few = result.too_few is not None
    rivals = [(rival, compare(right, [result.judged[rival, ""][classifier].right], count, few)) for rival in RIVALS]
    return [("random start", compare(right, others, count, few)), *rivals]


def _compared(comparison: Comparison) -> dict[str, Any]:
    return {"difference": _interval(comparison.difference), "verdict": comparison.verdict}


def _interval(interval: Interval) -> list[float]:
    return [round(each, 6) for each in (interval.value, interval.lower, interval.upper)]


def _grid_ends(result: ProbeResult) -> list[str]:
    """A sentence for each classifier and end of its grid that some features chose in most folds."""
    found = []
    for name in result.settings.classifiers:
        for end in ("lower", "upper"):
            there = [
                " of ".join(filter(None, (layer, source)))
                for (source, layer), answers in result.judged.items()
                if 2 * Counter(answers[name].ends)[end] > len(result.folds)
            ]
            if there:
                more = f" and {len(there) - 4} more" if len(there) > 4 else ""
                found.append(f"{name}: the best {_CHOICE[name]} lies at the {end} end of the grid for {', '.join(there[:4])}{more}")
    return found


def as_text(values: Mapping[str, Any], name: str, labelled: str) -> str:
    """Tables and sentences of a probe.

    Args:
        values: figures, as `as_mapping` gives them.
        name: the encoder, as the person named it.
        labelled: the pictures, likewise.
    """
    encoder, pictures, settings = values["encoder"], values["pictures"], values["settings"]
    folds = settings["test_folds"]
    lines = [
        f"probe of {name}: {encoder['recipe']}, step {encoder['step']:,}",
        f"on {labelled}: {counted(pictures['count'], 'picture')}, {counted(len(pictures['classes']), 'class')}; "
        f"naming the largest class is right on {_percent(pictures['chance'])} %",
        f"{counted(settings['folds'], 'stratified fold')} of {min(folds):,} to {counted(max(folds), 'picture')}, seed {settings['seed']}; "
        "every figure is the percentage of pictures classified rightly by classifiers that never saw them",
        *(f"note: {note}" for note in pictures["notes"]),
    ]
    for classifier in settings["classifiers"]:
        lines += ["", *_table(values, classifier)]
    return "\n".join([*lines, "", *_sentences(values)])


def _table(values: Mapping[str, Any], classifier: str) -> list[str]:
    accuracies = [row for row in values["accuracies"] if row["classifier"] == classifier]
    differences = [row for row in values["differences"] if row["classifier"] == classifier]
    start = {row["layer"]: row for row in differences if row["to"] == "random start"}
    rows = [("layer", "values", "encoder [95 %]", "random start [95 %]", "difference [95 % all at once]", "verdict")]
    for row in (row for row in accuracies if row["features"] == ENCODER):
        beside = start[row["layer"]]
        hardest = min(  # the random start that the difference is to
            (each for each in accuracies if each["layer"] == row["layer"] and each["features"].startswith("random start")),
            key=lambda each: -each["accuracy"][0],
        )
        size = f"{row['values']:,}" if row["values"] else ""
        rows.append(
            (row["layer"], size, _spread(row["accuracy"]), _spread(hardest["accuracy"]), _signed(beside["difference"]), beside["verdict"])
        )
    for row in (row for row in accuracies if row["features"] in RIVALS):
        rows.append((row["features"], f"{row['values']:,}", _spread(row["accuracy"]), "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"{_TITLES[classifier]}",
        *("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]


def _sentences(values: Mapping[str, Any]) -> list[str]:
    found = [values["too_few"]] if values["too_few"] else []
    for row in (row for row in values["differences"] if row["layer"] == CHOSEN):
        shown = f"by {row['classifier']}"
        if row["to"] == "random start" and not values["too_few"]:
            found.append(f"{shown}, the encoder {_SENTENCES[row['verdict']]}: {_signed(row['difference'])} points")
        elif row["to"] == "mean colour" and row["verdict"] != "better":
            what = "does not beat" if row["difference"][0] <= 0 else "is not shown to beat"
            found.append(f"{shown}, the encoder {what} the mean colour of a picture: {_signed(row['difference'])} points")
    return found + [f"note: {sentence}" for sentence in values["grid_ends"]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _spread(interval: Sequence[float]) -> str:
    value, lower, upper = map(_percent, interval)
    return f"{value} [{lower}, {upper}]"


def _signed(interval: Sequence[float]) -> str:
    value, lower, upper = (f"{100 * each:+.1f}" for each in interval)
    return f"{value} [{lower}, {upper}]"
