"""The figures of an evaluation on held-back pictures: a row of a run's evaluation.jsonl in, values of gauges out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.metrics.definitions import BASELINES, CLASSIFIERS, GUESSERS

_PER_CENT = 100.0


def gauge_values(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yields the name of a gauge, the values of its labels and its value, for every figure of an evaluation.

    Args:
        row: row of evaluation.jsonl. A figure that the row lacks, or that is no number, is NaN, as are the probe's where `probe` is null.
    """
    yield "evaluation_step", (), _number(row, "step")
    yield "evaluation_duration_seconds", (), _number(row, "seconds")
    baselines = _mapping(row, "baselines")
    for painter, figures in {"network": row, **{name: _mapping(baselines, name) for name in BASELINES}}.items():
        yield "held_back_loss", (painter,), _number(figures, "loss")
        yield "held_back_absolute_error_ratio", (painter,), _number(figures, "l1") / _PER_CENT
        yield "held_back_psnr_decibels", (painter,), _number(figures, "psnr")
    for guesser in GUESSERS:
        yield "held_back_accuracy_ratio", (guesser,), _number(row if guesser == "network" else _mapping(baselines, guesser), "accuracy")
    yield "held_back_gain_ratio", (), _number(row, "gain")
    maps, dead = _mapping(row, "maps"), _mapping(row, "dead_maps")
    for layer in maps:
        yield "dead_maps_ratio", (layer,), _number(dead, layer) / (_number(maps, layer) or math.nan)
    yield "output_spread_ratio", (), _number(row, "output_spread")
    yield "feature_dimensions", (), _number(row, "feature_dimensions")
    yield "feature_spread_ratio", (), _number(row, "feature_spread")
    probe = _mapping(row, "probe")
    for classifier in CLASSIFIERS:
        yield "probe_accuracy_ratio", (classifier,), _number(probe, classifier)


def _mapping(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = of.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(of: Mapping[str, Any], key: str) -> float:
    try:
        return float(of[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.nan
