"""The tables of the page: attempts, checkpoints, bad samples and events. The newest rows come first, and each table has a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from monitoring.report.attempts import Attempt
from monitoring.report.axes import UNKNOWN, duration, moment, size
from monitoring.report.disclosure import flattened
from monitoring.report.lines import integer, number
from monitoring.report.markup import figure_cell, row, section, table, text, within
from monitoring.report.record import Record, kind_of
from shards.counting import counted

_ATTEMPTS_BUDGET, _EVENTS_BUDGET, _CHECKPOINTS_BUDGET = 300_000, 600_000, 60_000  # characters
_MOST_FACTS = 30  # facts of an event that are shown
_BAD_EVENTS = frozenset({"stall", "rank_died", "checkpoint_failed", "nonfinite", "collapse", "starving", "not_learning"})
_GOOD_EVENTS = frozenset({"checkpoint", "starving_over", "collapse_over", "nonfinite_over", "learning_again"})


def attempts_section(record: Record) -> str:
    """Returns the part with the attempts: which steps each of them trained."""
    if not record.attempts:
        return section("attempts", "Attempts", '<p class="empty">No attempt is recorded.</p>')
    last = max((max(each.last, each.start) for each in record.attempts), default=1) or 1
    newest = record.attempts[-1]
    rows, left_out = within(_ATTEMPTS_BUDGET, (_attempt_row(record, each, newest, last) for each in reversed(record.attempts)))
    trained, undone = sum(each.counted for each in record.attempts), sum(each.undone for each in record.attempts)
    lead = f"{counted(trained, 'step counts', 'steps count')}. "
    if undone:
        lead += f"{counted(undone, 'more was', 'more were')} taken back, because a later attempt continued from a checkpoint before them. "
    lead += "<code>python launch/ledger.py RUN</code> proves which samples the counted steps saw."
    more = f'<p class="hint">{counted(left_out, "earlier attempt is", "earlier attempts are")} not listed.</p>' if left_out else ""
    head = ("attempt", "began (UTC)", ">lasted", ">ranks", "steps", f"of {last:,}", ">count", ">taken back", ">images", "end")
    return section("attempts", "Attempts", table(head, rows, "Attempts", "attempts") + more, lead)


def _attempt_row(record: Record, attempt: Attempt, newest: Attempt, last: int) -> str:
    steps = f"{attempt.first:,} to {attempt.last:,}" if attempt.last else "none"
    if position := _position(attempt):
        steps += f"<small>{position}</small>"
    mood, end = _end(record, attempt, attempt is newest)
    return row(
        f"{attempt.number:,}",
        moment(attempt.begun)[:16],
        figure_cell(duration(attempt.seconds)),
        figure_cell(_ranks(attempt)),
        steps,
        _bar(attempt, last),
        figure_cell(f"{attempt.counted:,}"),
        figure_cell(f"{attempt.undone:,}" if attempt.undone else UNKNOWN),
        figure_cell(f"{attempt.counted * attempt.global_batch:,}" if attempt.global_batch else UNKNOWN),
        f'<td><span class="dot {mood}"></span>{end}</td>',
    )


def _ranks(attempt: Attempt) -> str:
    mode = attempt.facts.get("mode")
    return (f"{attempt.world_size:,}" if attempt.world_size else UNKNOWN) + (f"<small>{text(mode, 20)}</small>" if mode else "")


def _position(attempt: Attempt) -> str:
    """Returns the position in the data where an attempt began; with several data sets, the position in the first one."""
    position = attempt.facts.get("position")
    if not isinstance(position, Mapping):
        return ""
    epochs = [integer(value) for key, value in position.items() if str(key).rpartition(".")[2] == "epoch"]
    consumed = [integer(value) for key, value in position.items() if str(key).rpartition(".")[2] == "consumed"]
    if not epochs or epochs[0] is None or consumed[:1] in ([], [None]):
        return ""
    return f"from epoch {epochs[0]:,}, sample {consumed[0]:,}"


def _bar(attempt: Attempt, last: int) -> str:
    """Draws the steps of an attempt as a strip: the steps that count, then those that were taken back."""
    if not attempt.last:
        return "<td></td>"
    left, right = attempt.first - 1, attempt.last
    middle = min(right, max(left, int(min(attempt.limit, right))))
    parts = ""
    for kind, begin, end in (("counts", left, middle), ("back", middle, right)):
        if end > begin:
            parts += f'<rect class="{kind}" x="{begin / last:.2%}" y="3" width="{max(0.004, (end - begin) / last):.2%}" height="8"/>'
    return f'<td class="bar"><svg width="100%" height="14" aria-hidden="true"><line x1="0" x2="100%" y1="7" y2="7"/>{parts}</svg></td>'


def _end(record: Record, attempt: Attempt, newest: bool) -> tuple[str, str]:
    if attempt.failed:
        return "bad", f"{text(attempt.reason, 60)}: {text(attempt.message)}"
    if attempt.reason == "finished":
        return "good", "finished"
    if attempt.reason:
        return "good", f"stopped: {text(attempt.reason)}"
    if attempt.hung:
        return "bad", f"hung: {text(attempt.hung)}"
    if attempt.died:
        return "bad", text(attempt.died)
    if newest and record.is_running:
        return "live", "running"
    return "warn", "no end recorded: killed, or its machine was lost" if attempt.is_known else "not known"


def checkpoints_section(record: Record) -> str:
    """Returns the part with the newest checkpoints."""
    if not record.checkpoints:
        return section("checkpoints", "Checkpoints", '<p class="empty">No checkpoint is recorded.</p>')
    rows, left_out = within(_CHECKPOINTS_BUDGET, (_checkpoint_row(each) for each in reversed(record.checkpoints)))
    total = record.event_counts["checkpoint"]
    left_out += total - len(record.checkpoints)
    failed = record.event_counts["checkpoint_failed"]
    lead = f"{total:,} saved, {failed:,} failed." + (f" The newest {total - left_out:,} are listed." if left_out > 0 else "")
    lead += " Older ones may have been removed by the rule of checkpoint.keep_last."
    head = ("step", "written (UTC)", ">size", ">writing took", ">training stood still", ">thereof for the save before")
    return section("checkpoints", "Checkpoints", table(head, rows, "Checkpoints"), lead)


def _checkpoint_row(event: Mapping[str, Any]) -> str:
    step = integer(event.get("step"))
    amounts = [number(event.get(key)) for key in ("time", "bytes", "seconds", "blocked", "waited")]
    when, amount, *seconds = (math.nan if value is None else value for value in amounts)
    cells = map(figure_cell, (size(amount), *map(duration, seconds)))
    return row(f"{step:,}" if step is not None else UNKNOWN, moment(when), *cells)


def bad_samples_section(record: Record) -> str:
    """Returns the part with the newest bad samples; empty where there were none."""
    total = sum(record.bad_samples.values())
    if not total:
        return ""
    rows = []
    for each in reversed(record.bad_sample_rows):
        name = each.get("name", each.get("sample_id", UNKNOWN))
        rows.append(row(text(name, 120), *(text(each.get(key, UNKNOWN), 200) for key in ("shard", "cause", "reason"))))
    lead = f"{total:,} in all; each was replaced by another of its block. The newest {len(rows)} of quarantine.jsonl."
    return section("bad-samples", "Bad samples", table(("sample", "shard", "cause", "reason"), rows, "Bad samples"), lead)


def events_section(record: Record) -> str:
    """Returns the part with the event log, the newest first, which the page's script filters."""
    if not record.events:
        return section("events", "Events", '<p class="empty">events.jsonl has no events.</p>')
    newest = list(reversed(record.events))
    rows, _ = within(_EVENTS_BUDGET, map(_event_row, newest))
    kinds = Counter(map(kind_of, newest[: len(rows)]))
    options = "".join(f'<option value="{text(kind, 60)}">{text(kind, 60)} ({count:,})</option>' for kind, count in sorted(kinds.items()))
    total = sum(record.event_counts.values())
    tools = (
        '<form class="tools" id="event-tools" hidden><label>Kind <select id="event-kind"><option value="">all</option>'
        f'{options}</select></label><label>Contains <input id="event-text" type="search" autocomplete="off"></label>'
        f'<output id="event-count">{counted(len(rows), "event")}</output></form>'
    )
    lead = "The newest first." + (
        f" {counted(total - len(rows), 'older one is', 'older ones are')} in events.jsonl." if total > len(rows) else ""
    )
    return section("events", "Events", tools + table(("time (UTC)", "event", ">step", "details"), rows, "Events", "events"), lead)


def _event_row(event: Mapping[str, Any]) -> str:
    kind = kind_of(event)
    when, step = number(event.get("time")), integer(event.get("step"))
    facts = {key: value for key, value in event.items() if key not in ("event", "time", "step", "position", "versions", "shares")}
    details = text("; ".join(f"{key}: {value}" for key, value in islice(flattened(facts), _MOST_FACTS)), 400)
    what = f'<td><span class="dot {_mood(kind, event)}"></span><span class="kind">{text(kind, 60)}</span></td>'
    reached = figure_cell(f"{step:,}" if step is not None else "")
    return row(moment(math.nan if when is None else when), what, reached, f'<td class="said">{details}</td>')


def _mood(kind: str, event: Mapping[str, Any]) -> str:
    if kind in _BAD_EVENTS or "message" in event:
        return "bad"
    return "good" if kind in _GOOD_EVENTS or event.get("reason") == "finished" else "live"
