"""The top of the page: the state of the run, its figures, and notes about problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.report.attempts import images
from monitoring.report.axes import UNKNOWN, duration, figure, moment, percent
from monitoring.report.curves import Curve
from monitoring.report.evaluations import REPEATED
from monitoring.report.learning import baseline_name, headline, reached, verdict
from monitoring.report.lines import integer, number
from monitoring.report.markup import text
from monitoring.report.record import Record
from shards.counting import counted

HEADLINES = {
    "baseline": "The network is no better than a plain colour",
    "dead_maps": "Maps of the network are dead",
    "constant_output": "The painting is the same for every picture",
    "collapsed_features": "The features have collapsed",
}
"""Problem of learning -> part of docs/operations.md."""


@dataclass(frozen=True)
class State:
    """State of a run.

    Attributes:
        word: the state in one or two words.
        mood: good, live, warn or bad, which decides the colour.
        sentence: the state with figures, as markup.
    """

    word: str
    mood: str
    sentence: str


def state(record: Record) -> State:
    """Returns the state of the run at the time of reading."""
    last, done = record.last, _steps_done(record)
    if last is None:
        return State("unknown", "warn", "The folder does not say what was trained.")
    if last.reason == "finished":
        return _finished(record, done)
    if last.failed:
        return State("failed", "bad", f"The run ended after {done}: {text(last.reason)}: {text(last.message)}")
    if last.reason:
        return State("stopped", "warn", f"The run was stopped after {done} ({text(last.reason)}) and saved; the same command continues it.")
    if last.hung:
        return State("hung", "bad", f"The watchdog ended the run after {done}: {text(last.hung)}.")
    if last.died:
        return State("failed", "bad", f"The run ended after {done}: {text(last.died)}. The same command continues it.")
    are = _steps_done(record, "step is", "steps are")
    if record.is_running:
        left = _left_seconds(record)
        more = f", about {duration(left)} are left at this speed" if math.isfinite(left) else ""
        return State("running", "live", f"{are} done{more}.")
    silent = duration(record.read_at - record.written_at)
    return State("silent", "bad", f"{are} done; the run has written nothing for {silent}, and no end.")


def _finished(record: Record, done: str) -> State:
    """Returns the state of a finished run, which is good only where the run has learnt as far as its evaluations show it."""
    judged, sentence = record.evaluations.judged, reached(record.evaluations)
    if judged is not None and judged.beats_baselines is False:
        name = text(baseline_name(judged.stronger))
        classes = judged.baselines[judged.stronger].names_a_class
        but = f"the network {f'names classes no better than {name}' if classes else f'paints no better than the {name}'}: {sentence}."
        if (best := record.evaluations.best) is not None and best.beats_baselines:
            but += f" It was {verdict(best)} at step {best.step:,}."
        if judged.step < (limit := _judge_after(record)):
            but += f" That may be too early to judge: evaluation.judge_after is {counted(limit, 'step')}."
        return State("finished, baseline not beaten", "warn", f"All {done} are done, but {but}")
    sentence = f"All {done} are done{f': {sentence}' if sentence else ''}."
    if problems := sum(kind == "not_learning" for kind, _ in record.states):
        there = "a problem is" if problems == 1 else counted(problems, "problem is", "problems are")
        return State("finished, with problems", "warn", f"{sentence} But {there} in the notes below.")
    return State("finished", "good", sentence)


def _judge_after(record: Record) -> int:
    """Returns the number of steps from which on a run is judged; 0 where the settings don't say."""
    evaluation = record.settings.get("evaluation")
    return (integer(evaluation.get("judge_after")) or 0) if isinstance(evaluation, Mapping) else 0


def progress(record: Record) -> float:
    """Returns the fraction of the planned steps that are done; NaN where the settings don't say how many there are."""
    return min(1.0, record.steps / record.planned) if record.planned else math.nan


def tiles(record: Record) -> list[tuple[str, str, str]]:
    """Returns the figures of the run as markup: (name, value, text beside the value)."""
    attempts, curves = record.attempts, record.curves
    trained, undone = sum(each.counted for each in attempts), sum(each.undone for each in attempts)
    found = [("Steps", f"{record.steps:,}", f"of {record.planned:,}" if record.planned else "")]
    seen = images(attempts)
    found.append(("Images", _thousands(seen) if seen else UNKNOWN, "trained on, in steps that count"))
    for name in _headline_losses(record):
        curve = curves[name]
        begin, end = _ends(curve)
        title = f"{name[1]} {name[2]}".replace("_", " ")
        found.append(
            (f"{text(title[:1].upper() + title[1:], 60)} loss", figure(end, 3), f"{figure(begin, 3)} in the first tenth of the run")
        )
    if (judged := record.evaluations.judged) is not None:
        against = "no baseline is known"
        if judged.stronger:
            article = "" if judged.baselines[judged.stronger].names_a_class else "the "
            against = f"{verdict(judged)} than {article}{text(baseline_name(judged.stronger))}"
        title, value = headline(judged)
        found.append((title[:1].upper() + title[1:], value, against))
    if curves.names("throughput"):
        found.append(("Images per second", figure(_middle(curves[("throughput",)]), 3), "median, all ranks together"))
        found += _speed(record)
    if curves.names("wait"):
        found.append(("Waiting for data", percent(_middle(curves[("wait",)])), "of the time, median"))
    lasted = math.fsum(each.seconds for each in attempts if math.isfinite(each.seconds))
    worlds = sorted({each.world_size for each in attempts if each.world_size})
    ranks = f"{worlds[0]} to {worlds[-1]}" if len(worlds) > 1 else "".join(map(str, worlds))
    found.append(
        ("Time training", duration(lasted) if lasted else UNKNOWN, f"with {ranks} {'rank' if ranks == '1' else 'ranks'}" if worlds else "")
    )
    fraction = undone / (trained + undone) if undone else 0.0
    beside = f"{counted(undone, 'step')} taken back ({percent(fraction)})" if undone else "no step taken back"
    found.append(("Attempts", f"{len(attempts):,}", beside))
    saved = record.checkpoints[-1] if record.checkpoints else {}
    when, step = number(saved.get("time")), integer(saved.get("step"))
    beside = f"of {moment(when)} UTC" if when is not None else "none is recorded"
    found.append(("Newest checkpoint", f"step {step:,}" if step is not None else UNKNOWN, beside))
    return found


def notes(record: Record) -> list[tuple[str, str]]:
    """Returns the problems of the run: (mood, sentence as markup)."""
    found = [("bad", _described(kind, who, row)) for (kind, who), row in record.states.items()]
    if failed := record.event_counts["checkpoint_failed"]:
        found.append(("warn", f"{counted(failed, 'save')} failed; the event log has the reasons."))
    if skipped := sum(each.skipped for each in record.attempts):
        found.append(("warn", f"{counted(skipped, 'step')} did not change the weights, because a gradient was not finite."))
    if bad := sum(record.bad_samples.values()):
        causes = ", ".join(f"{count:,} {text(cause, 40)}" for cause, count in record.bad_samples.most_common())
        found.append(("warn", f"{counted(bad, 'bad sample was', 'bad samples were')} replaced ({causes}): see quarantine.jsonl."))
    if hung := record.event_counts["stall"]:
        where = f"the stacks of its threads are in the folder stacks ({counted(len(record.stacks), 'file')})"
        found.append(("warn", f"{counted(hung, 'time')} a rank hung and was ended; {where}."))
    if record.curves.left_out:
        found.append(("warn", "The history names more quantities than any run has, so only the first ones are drawn."))
    return found + [("warn", text(problem, 600)) for problem in record.problems]


def _described(kind: str, who: str, row: Mapping[str, Any]) -> str:
    step = integer(row.get("step"))
    since = f" since step {step:,}" if step is not None else ""
    if kind == "not_learning":
        message = text(row.get("message") or "The run does not learn", 400).rstrip(".")
        where = f"docs/operations.md, {HEADLINES[who]}" if who in HEADLINES else "docs/operations.md"
        return f"{message}{since}: {where}."
    if kind == "starving":
        return f"Ranks wait for data most of the time{since}: docs/operations.md, Data starves."
    if kind == "collapse":
        return f"The {text(who, 80)} has collapsed{since}: docs/operations.md, The discriminator has collapsed."
    return f"Gradients are not finite{since}: docs/operations.md, Losses or gradients that are not finite."


def _headline_losses(record: Record) -> list[tuple[str, ...]]:
    """Returns the losses that get a figure: those that evaluations repeat where there are any, else the total of the first player."""
    names = record.curves.names("loss")
    return [name for name in names if name[2] in REPEATED][:2] or [name for name in names if name[2] == "total"][:1] or names[:1]


def _ends(curve: Curve) -> tuple[float, float]:
    """Returns the means of the first and of the last tenth of a curve."""
    buckets = [curve.counted[index] for index in sorted(curve.counted) if curve.counted[index].count]
    tenth = max(1, len(buckets) // 10)
    ends = []
    for part in (buckets[:tenth], buckets[-tenth:]):
        count = sum(bucket.count for bucket in part)
        ends.append(math.fsum(bucket.total for bucket in part) / count if count else math.nan)
    return ends[0], ends[1]


def _middle(curve: Curve) -> float:
    means = [bucket.mean for bucket in curve.counted.values() if bucket.count]
    return statistics.median(means) if means else math.nan


def _speed(record: Record) -> list[tuple[str, str, str]]:
    """Returns the figure of the networks' own operations a second; nothing where the run does not say what a picture costs."""
    cost = number(record.last.facts.get("flops_per_image")) if record.last else None
    speed = _middle(record.curves[("throughput",)]) * cost if cost is not None else math.nan
    if cost is None or not math.isfinite(speed):
        return []
    share = "the peak is unknown: give that of a rank's device as monitoring.peak_teraflops"
    if record.curves.names("utilisation"):
        share = f"{percent(_middle(record.curves[('utilisation',)]))} of the peak of all ranks, median"
    return [("Model FLOP/s", _thousands(int(speed)), f"{_thousands(int(cost))} a picture; {share}")]


def _left_seconds(record: Record) -> float:
    last = record.last
    if last is None or not record.planned or not last.global_batch or not record.curves.names("throughput"):
        return math.nan
    rate = record.curves[("throughput",)].latest
    return (record.planned - record.steps) * last.global_batch / rate if rate > 0 else math.nan


def _steps_done(record: Record, noun: str = "step", plural: str = "") -> str:
    of = record.planned and not record.is_finished
    return f"{record.steps:,} of {counted(record.planned, noun, plural)}" if of else counted(record.steps, noun, plural)


def _thousands(count: int) -> str:
    for size, suffix in ((10**15, " P"), (10**12, " T"), (10**9, " G"), (10**6, " M")):
        if count >= size:
            return f"{figure(count / size, 3)}{suffix}"
    return f"{count:,}"
