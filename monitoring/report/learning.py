"""The part of the page that says whether the run learns: what it reached on held-back pictures, against baselines and its random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from monitoring.report.axes import UNKNOWN, duration, figure, percent
from monitoring.report.charts import Chart, Drawing, Level, Line
from monitoring.report.disclosure import shown
from monitoring.report.evaluations import REPEATED, Evaluation, Evaluations, Probe, Scores
from monitoring.report.markup import figure_cell, row, section, table, text
from monitoring.report.record import Record
from monitoring.run_files import (
    BASELINES,
    FEWEST_PICTURES,
    GUESSES,
    LEAST_FEATURE_DIMENSIONS,
    LEAST_FEATURE_SPREAD,
    LEAST_OUTPUT_SPREAD,
    MOST_DEAD,
    undecided,
)
from shards.counting import counted

_MEANINGS = {
    "constant": "the mean colour of the data set in every hole",
    "visible_mean": "the mean colour of the picture's visible part in its hole",
    "chance": "every class equally often",
    "largest_class": "the most frequent class of these pictures for all of them",
}
_WARNING = '<span class="dot warn"></span>'


def baseline_name(name: str) -> str:
    """Writes the name of a baseline, not escaped."""
    return (BASELINES | GUESSES).get(name, shown(name.replace("_", " "), 40))


def reached(evaluations: Evaluations) -> str:
    """Returns as markup what the newest evaluation reached against the stronger baseline and the random start; empty where there is none.

    For example: held-back L1 8.8 %, visible mean 9.9 %: 11 % better; random start 24.2 %
    """
    newest, start = evaluations.judged, evaluations.start
    if newest is None:
        return ""
    if newest.names_a_class and newest.unlabelled == newest.pictures:
        return f"no held-back accuracy, because none of {counted(newest.pictures, 'picture')} has a label"
    name, value = headline(newest)
    sentence = f"{name} {value if math.isfinite(newest.scores.error) else 'not finite'}"
    if newest.stronger:
        scores = newest.baselines[newest.stronger]
        sentence += f", {text(baseline_name(newest.stronger))} {_compared(scores)}: {verdict(newest)}"
    return sentence + (f"; random start {_compared(start.scores)}" if start is not None else "")


def headline(evaluation: Evaluation) -> tuple[str, str]:
    """Returns the name and the value of the figure by which an evaluation is judged."""
    return f"held-back {'accuracy' if evaluation.names_a_class else 'L1'}", _compared(evaluation.scores)


def verdict(evaluation: Evaluation) -> str:
    """Writes in words how the network compares with the stronger baseline: the gain, or for named classes whether it is more than luck."""
    stronger, beats = evaluation.baselines[evaluation.stronger], evaluation.beats_baselines
    if not stronger.names_a_class:
        return better(evaluation.gain)
    if beats is None:
        return undecided(stronger.accuracy, evaluation.pictures - evaluation.unlabelled)
    return "better" if beats else "no better"


def better(gain: float) -> str:
    """Writes a gain in words: 11 % better, 3 % worse, no better."""
    if math.isnan(gain):
        return "not better"
    amount = figure(100 * abs(gain), 2)
    return "no better" if amount == "0" else f"{amount} % {'better' if gain > 0 else 'worse'}"


def levels(evaluations: Evaluations) -> list[Level]:
    """Returns the losses of the baselines, the smaller first."""
    newest = evaluations.newest
    losses = sorted((scores.loss, name) for name, scores in newest.baselines.items()) if newest is not None else []
    return [Level(baseline_name(name), loss) for loss, name in losses if math.isfinite(loss)]


def held_back_line(record: Record) -> Line:
    """Returns the held-back loss over the steps."""
    return Line("held back", record.evaluations.curve(record.curves, lambda row: row.scores.loss), has_points=True)


def drawings(record: Record, first: int) -> list[Drawing]:
    """Returns the charts of this part of the page.

    Args:
        record: run to draw.
        first: number of the first of these charts on the page.
    """
    evaluations, curves = record.evaluations, record.curves
    if not evaluations.rows or not curves.last:
        return []

    def line(name: str, value: Callable[[Evaluation], float]) -> Line:
        return Line(name, evaluations.curve(curves, value), has_points=True)

    classes = any(row.scores.names_a_class for row in evaluations.rows)
    charts = [_accuracy_chart(evaluations, line("", lambda row: row.scores.accuracy))] if classes else []
    charts.append(
        Chart(
            f"Fraction of the stronger baseline's {'errors' if classes else 'L1'} taken away",
            [line("", lambda row: row.gain)],
            is_fraction=True,
            from_zero=True,
            levels=[Level("baseline", 0.0)],
            skips_start=True,
        )
    )
    if not any(name[2:] in [(part,) for part in REPEATED] for name in curves.names("loss")):
        charts.append(Chart("Held-back loss", [line("", lambda row: row.scores.loss)], levels=levels(evaluations), skips_start=True))
    if any(row.dead > 0 for row in evaluations.rows):  # false for NaN
        charts.append(Chart("Dead maps, all layers", [line("", lambda row: row.dead)], is_fraction=True, from_zero=True))
    probes = [row.probe for row in evaluations.rows if row.probe is not None]
    if probes:
        lines = [line("nearest neighbours", lambda row: _probed(row, "knn")), line("ridge regression", lambda row: _probed(row, "ridge"))]
        chance = [Level("guess", probes[-1].chance)] if math.isfinite(probes[-1].chance) else []
        charts.append(Chart("Probe: accuracy on the frozen features", lines, is_fraction=True, from_zero=True, levels=chance))
    charts = [chart for chart in charts if any(each.curve.counted for each in chart.lines)]
    return [Drawing(chart, curves, [], [], number) for number, chart in enumerate(charts, first)]


def _accuracy_chart(evaluations: Evaluations, accuracy: Line) -> Chart:
    """Returns the chart of the accuracy beside that of guessing."""
    newest = evaluations.newest
    guesses = sorted((scores.accuracy, name) for name, scores in newest.baselines.items()) if newest is not None else []
    levels = [Level(baseline_name(name), guess) for guess, name in guesses if math.isfinite(guess)]
    return Chart("Held-back accuracy", [accuracy], is_fraction=True, from_zero=True, levels=levels)


def learning_section(record: Record, drawn: Sequence[Drawing]) -> str:
    """Returns the part with what the run learns; empty where there is no evaluation."""
    evaluations = record.evaluations
    newest, judged = evaluations.newest, evaluations.judged
    if newest is None:
        return ""
    lead = f"{reached(evaluations)}. " if judged is not None else "Only the random start has been evaluated. "
    lead = lead[:1].upper() + lead[1:]
    lead += f"{counted(evaluations.count, 'evaluation')} on {counted(newest.pictures, 'picture')}"
    lead += f" that the run never trains on, with the same crops and random draws each time; the newest took {duration(newest.seconds)}."
    if newest.unlabelled:
        lead += f" Judged by {counted(newest.pictures - newest.unlabelled, 'picture')}. Left out:"
        lead += f" {counted(newest.unlabelled, 'picture')} without a label."
    if evaluations.others:
        lead += f" Without {counted(evaluations.others, 'evaluation')} on other pictures, because those figures differ."
    if evaluations.undone:
        lead += f" Without {counted(evaluations.undone, 'evaluation')} of steps that were taken back."
    charts = f'<div class="charts">{"".join(each.html() for each in drawn)}</div>' if drawn else ""
    start = evaluations.start if judged is not None else None
    parts = [
        _scores_table(newest, evaluations),
        charts,
        _spread_table(newest, start),
        _layers_table(newest, start),
        _probe_table(newest, start),
    ]
    return section("learning", "Does it learn", "".join(parts), lead)


def _scores_table(newest: Evaluation, evaluations: Evaluations) -> str:
    start, best = evaluations.start, evaluations.best
    rows = []
    if newest.step:
        rows.append(_evaluation_row(f"network at step {newest.step:,}", newest))
    if best is not None and best.step not in (0, newest.step):
        rows.append(_evaluation_row(f"best, at step {best.step:,}", best))
    if start is not None:
        rows.append(_evaluation_row("random start", start))
    for name, scores in sorted(newest.baselines.items(), key=lambda item: (item[0] != newest.stronger, item[0])):
        meaning = f"<small>{_MEANINGS[name]}</small>" if name in _MEANINGS else ""
        against = "the stronger baseline" if name == newest.stronger else ""
        rows.append(_scores_row(f"{text(baseline_name(name))}{meaning}", scores, newest.names_a_class, against))
    kind = ("named by", ">loss", ">accuracy") if newest.names_a_class else ("painted by", ">loss", ">L1", ">L2", ">PSNR")
    head = (*kind, "against the stronger baseline")
    return table(head, rows, "Scores on held-back pictures")


def _evaluation_row(name: str, evaluation: Evaluation) -> str:
    if not evaluation.stronger:
        return _scores_row(name, evaluation.scores, evaluation.names_a_class, "")
    beats = evaluation.beats_baselines
    mood = "good" if beats else "warn" if beats is False and evaluation.step else ""  # a random start is no fault
    return _scores_row(name, evaluation.scores, evaluation.names_a_class, f'<span class="dot {mood}"></span>{verdict(evaluation)}')


def _scores_row(name: str, scores: Scores, names_a_class: bool, against: str) -> str:
    if names_a_class:
        return row(name, figure_cell(figure(scores.loss, 3)), figure_cell(_compared(scores)), against)
    cells = (figure(scores.loss, 3), _per_cent(scores.l1), _per_cent(scores.l2), f"{figure(scores.psnr, 3)} dB")
    return row(name, *map(figure_cell, cells), against)


def _spread_table(now: Evaluation, start: Evaluation | None) -> str:
    before, judged = start or Evaluation(0), bool(now.step) and now.pictures >= FEWEST_PICTURES  # a random start is no fault
    rows = [
        row(name, figure_cell(figure(after, 3)), figure_cell(figure(first, 3)), (_WARNING if judged and after < least else "") + meaning)
        for name, after, first, least, meaning in (
            (
                "spread of the painted colours",
                now.output_spread,
                before.output_spread,
                LEAST_OUTPUT_SPREAD,
                "1: as far apart as the true ones; 0: every picture is painted in the same colour",
            ),
            (
                "dimensions of the features",
                now.feature_dimensions,
                before.feature_dimensions,
                LEAST_FEATURE_DIMENSIONS,
                "1: all pictures lie on one line",
            ),
            (
                "spread of the features",
                now.feature_spread,
                before.feature_spread,
                LEAST_FEATURE_SPREAD,
                "0: all pictures have the same features",
            ),
        )
        if math.isfinite(after)
    ]
    head = ("outputs and features", f">step {now.step:,}", ">random start", "how to read it")
    return f"<h3>Outputs and features</h3>{table(head, rows, 'Outputs and features')}" if rows else ""


def _layers_table(now: Evaluation, start: Evaluation | None) -> str:
    if not now.layers:
        return ""
    before = {name: dead for name, _, dead in start.layers} if start is not None else {}
    rows, judged = [], now.pictures >= FEWEST_PICTURES
    for name, maps, dead in now.layers:
        mood = "good" if not dead else "warn" if judged and dead > MOST_DEAD * maps else ""
        share = f'<td><span class="dot {mood}"></span>{percent(dead / maps)}</td>'
        first = f"{before[name]:,}" if name in before else UNKNOWN
        rows.append(row(text(name, 60), figure_cell(f"{maps:,}"), figure_cell(first), figure_cell(f"{dead:,}"), share))
    head = ("layer", ">maps", ">dead at the start", f">dead at step {now.step:,}", "part of the layer")
    hint = '<p class="hint">A dead map gives the same for every held-back picture: docs/operations.md, Maps of the network are dead.</p>'
    return f"<h3>Dead maps</h3>{hint}{table(head, rows, 'Dead maps by layer')}"


def _probe_table(now: Evaluation, start: Evaluation | None) -> str:
    if now.probe is None:
        return ""
    before = start.probe if start is not None else None
    names = (("nearest neighbours", "knn"), ("ridge regression", "ridge"))
    rows = [
        row(
            name,
            figure_cell(percent(getattr(now.probe, key))),
            figure_cell(percent(getattr(before, key)) if before is not None else UNKNOWN),
            figure_cell(percent(now.probe.chance)),
        )
        for name, key in names
    ]
    head = ("accuracy by", f">step {now.step:,}", ">random start", ">guess")
    hint = (
        f'<p class="hint">{counted(now.probe.classes, "class")}; few pictures, so that only large differences mean something.'
        " <code>python launch/evaluate.py probe</code> gives figures with intervals.</p>"
    )
    return f"<h3>Probe of the frozen features</h3>{hint}{table(head, rows, 'Probe of the frozen features')}"


def _probed(evaluation: Evaluation, key: str) -> float:
    probe: Probe | None = evaluation.probe
    return float(getattr(probe, key)) if probe is not None else math.nan


def _compared(scores: Scores) -> str:
    """Writes the figure by which networks and baselines are compared."""
    return _per_cent(100 * scores.accuracy if scores.names_a_class else scores.l1)


def _per_cent(value: float) -> str:
    return f"{figure(value, 3)} %" if math.isfinite(value) else UNKNOWN
