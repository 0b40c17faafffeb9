"""Dashboard "Checkpoints": what a crash would cost now, and what saving costs."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import NEUTRAL, Text, curves, number
from monitoring.dashboards.queries import RUN, Query, increase, largest, rule, series, smallest

PART = "A checkpoint fails, or is too old"
_SAVES_AN_HOUR = f"max by (run) (changes({series('checkpoint_step', RUN)}[1h]))"


def build(runbook: str) -> Dashboard:
    """The dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-checkpoints",
        "Checkpoints",
        "What a crash would take back now, whether what is saved can be read, and what saving costs.",
        [_state(), _cost(), _safety()],
        runbook,
    )


def _state() -> Row:
    saved, verified = largest(series("checkpoint_step", RUN)), largest(series("checkpoint_verified_step", RUN))
    risk = number(
        Text(
            "Steps at risk",
            "Steps since the newest checkpoint: what a crash would take back. Below checkpoint.every is good.",
            "More than that: a save failed, or is still being written.",
            PART,
        ),
        Query(f"{largest(series('step', RUN))} - {saved}", "{{run}}"),
        "none",
        NEUTRAL,
        decimals=0,
        words={"nan": ("no checkpoint yet", "blue")},
    )
    late = number(
        Text(
            "Against usual interval",
            "Work that is in no checkpoint, over what usually lies between two saves of this run, by the last 12 hours: 1 at most.",
            "Above 3: saves fail, or steps have become slow; the failures beside it say which.",
            PART,
        ),
        Query(f"{rule('checkpoint_at_risk:seconds')} / {rule('checkpoint_interval:seconds')}", "{{run}}"),
        "none",
        ((None, "green"), (1.5, "orange"), (3, "red")),
        decimals=1,
        words={"nan": ("no second save yet", "blue")},
    )
    failures = number(
        Text(
            "Failed saves",
            "Saves that failed within the time that is shown. None is good; the third in a row ends the run.",
            "The event checkpoint_failed in RUN/events.jsonl has the store's own words.",
            PART,
        ),
        Query(f"max by (run) (increase({series('checkpoint_failures_total', RUN)}[$__range]))", "{{run}}"),
        "none",
        ((None, "green"), (0.5, "red")),
        decimals=0,
    )
    unverified = number(
        Text(
            "Steps not verified",
            "Steps between the newest checkpoint and the newest one that was read back and verified. Every save is, "
            "before an older one is deleted, and so is what a run continues from.",
            "More than a save's time: the store does not give back what it takes, see the log. "
            "`python launch/checkpoints.py verify RUN` reads every byte of what is there.",
            PART,
        ),
        Query(f"{saved} - {verified}", "{{run}}"),
        "none",
        NEUTRAL,
        decimals=0,
        words={"nan": ("none verified yet", "blue")},
    )
    share = number(
        Text(
            "Time that saving takes",
            "Share of the last hour in which training stood still for saves: their blocking time, times the saves of the hour.",
            "Above a hundredth: raise checkpoint.every, or save to something faster.",
            PART,
        ),
        Query(f"{largest(series('checkpoint_blocking_seconds', RUN))} * {_SAVES_AN_HOUR} / 3600", "{{run}}"),
        "percentunit",
        ((None, "green"), (0.01, "orange"), (0.05, "red")),
        limits=(0, 1),
        decimals=2,
        words={"nan": ("no save yet", "blue")},
    )
    numbers = [
        state.ranks_answering(),
        state.checkpoint_age(),
        late,
        risk,
        unverified,
        failures,
        share,
        state.firing_alerts(),
    ]
    return Row("State of what is saved", numbers)


def _cost() -> Row:
    seconds = curves(
        Text(
            "Duration of saves",
            "Time the last save took from the snapshot to the commit, and the part of it in which training stood still.",
            "Longer and longer: the store, or a full disk. The standstill alone: memory for the snapshot, or a rank that comes late to it.",
            PART,
        ),
        [
            Query(largest(series("checkpoint_duration_seconds")), "from snapshot to commit ({{run}})"),
            Query(largest(series("checkpoint_blocking_seconds")), "training stood still ({{run}})"),
        ],
        "s",
    )
    size = curves(
        Text(
            "Size",
            "Bytes of the checkpoint that was saved last. Constant over a run.",
            "Another size after a restart is another network or optimiser: look at what the run says has changed.",
            PART,
        ),
        [Query(largest(series("checkpoint_bytes")), "{{run}}")],
        "bytes",
    )
    speed = curves(
        Text(
            "Speed of saves",
            "Bytes a second of the last save, from the snapshot to the commit.",
            "Falls while the size stays: the store or its network.",
            "The store fails",
        ),
        [Query(largest(f"{series('checkpoint_bytes')} / {series('checkpoint_duration_seconds')}"), "{{run}}")],
        "binBps",
    )
    return Row("Where the time goes", [seconds, size, speed])


def _safety() -> Row:
    age = curves(
        Text(
            "Age of the newest checkpoint",
            "Time since the newest checkpoint: even teeth are good.",
            "A tooth that goes on rising is a save that did not come; a tooth that ends early is a restart or a signal that saved.",
            PART,
        ),
        [Query(smallest(series("checkpoint_age_seconds")), "age ({{run}})"), Query(rule("checkpoint_interval:seconds"), "usual ({{run}})")],
        "s",
    )
    steps = curves(
        Text(
            "Trained, saved, verified",
            "Step of the run, of its newest checkpoint, and of the newest that was read back and verified. Saved follows trained in "
            "even stairs, and verified follows saved.",
            "Saved stays flat: see the failures. Verified stays flat: the store does not give back what it takes, see the log.",
            PART,
        ),
        [
            Query(largest(series("step")), "trained ({{run}})"),
            Query(largest(series("checkpoint_step")), "saved ({{run}})"),
            Query(largest(series("checkpoint_verified_step")), "verified ({{run}})"),
        ],
        "none",
    )
    failures = curves(
        Text(
            "Failed saves over time",
            "Saves that failed, when they did. None is good.",
            "One alone is tried again at the next checkpoint.every. `kill -USR1` of any rank saves at once and stops.",
            "Stopping",
        ),
        [Query(largest(increase("checkpoint_failures_total")), "{{run}}")],
        "short",
        bars=True,
    )
    return Row("Is what was learned safe", [age, steps, failures])
