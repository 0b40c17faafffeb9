"""Dashboard "Checkpoints": the cost of a crash now, and the cost of saving."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import NEUTRAL, Text, curves, number
from monitoring.dashboards.queries import RUN, Query, increase, largest, rule, series, smallest

PART = "A checkpoint fails, or is too old"
_SAVES_AN_HOUR = f"max by (run) (changes({series('checkpoint_step', RUN)}[1h]))"


def build(runbook: str) -> Dashboard:
    """Builds the dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-checkpoints",
        "Checkpoints",
        "The work that a crash would take back now, whether the checkpoints can be read, and the cost of saving.",
        [_state(), _cost(), _safety()],
        runbook,
    )


def _state() -> Row:
    saved, verified = largest(series("checkpoint_step", RUN)), largest(series("checkpoint_verified_step", RUN))
    risk = number(
        Text(
            "Steps at risk",
            "Steps since the newest checkpoint, which a crash would take back. Below checkpoint.every is good.",
            "More: a save failed, or is still being written.",
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
            "Work since the newest checkpoint, relative to the usual interval between two saves of this run in the last 12 hours. At most "
            "1 is good.",
            "Above 3: saves fail, or steps have become slow. The failures beside it show which.",
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
            "Saves that failed within the time shown. None is good; the third in a row ends the run.",
            "The event checkpoint_failed in RUN/events.jsonl has the message of the store.",
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
            "Steps between the newest checkpoint and the newest one that was read back and verified. Every save is verified "
            "before an older one is deleted, and so is the checkpoint that a run continues from.",
            "Longer than a save takes: the store does not return the bytes that it was given, see the log. "
            "`python launch/checkpoints.py verify RUN` reads every byte of the checkpoints.",
            PART,
        ),
        Query(f"{saved} - {verified}", "{{run}}"),
        "none",
        NEUTRAL,
        decimals=0,
        words={"nan": ("none verified yet", "blue")},
    )
    saving = number(
        Text(
            "Time that saving takes",
            "Fraction of the last hour in which training stood still for saves: blocking time of the last save, times the saves of the "
            "hour.",
            "Above 1 %: raise checkpoint.every, or save to a faster store.",
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
        saving,
        state.firing_alerts(),
    ]
    return Row("State of the checkpoints", numbers)


def _cost() -> Row:
    seconds = curves(
        Text(
            "Duration of saves",
            "Time that the last save took from the snapshot to the commit, and the part of it in which training stood still.",
            "Longer and longer: the store, or a full disk. Only the standstill grows: memory for the snapshot, or a rank that reaches it "
            "late.",
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
            "Bytes of the last saved checkpoint. Constant over a run is good.",
            "Another size after a restart: another network or optimiser. The run prints which settings changed.",
            PART,
        ),
        [Query(largest(series("checkpoint_bytes")), "{{run}}")],
        "bytes",
    )
    speed = curves(
        Text(
            "Speed of saves",
            "Bytes per second of the last save, from the snapshot to the commit. Constant is good.",
            "It falls while the size stays: the store or its network.",
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
            "Time since the newest checkpoint. Even teeth are good.",
            "A tooth that goes on rising: a save did not happen. A tooth that ends early: a restart, or a signal that saved.",
            PART,
        ),
        [Query(smallest(series("checkpoint_age_seconds")), "age ({{run}})"), Query(rule("checkpoint_interval:seconds"), "usual ({{run}})")],
        "s",
    )
    steps = curves(
        Text(
            "Trained, saved, verified",
            "Step of the run, of its newest checkpoint, and of the newest one that was read back and verified. Saved follows trained in "
            "even stairs, and verified follows saved.",
            "Saved stays flat: see the failures. Verified stays flat: the store does not return the bytes that it was given, see the log.",
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
            "Saves that failed, at the time of the failure. None is good.",
            "After a single failure the run saves again at the next checkpoint.every. `kill -USR1` of any rank saves at once and stops.",
            "Stopping",
        ),
        [Query(largest(increase("checkpoint_failures_total")), "{{run}}")],
        "short",
        bars=True,
    )
    return Row("Safety of the progress", [age, steps, failures])
