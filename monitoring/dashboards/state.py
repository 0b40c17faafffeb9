"""Numbers of the first row that several dashboards share. They are those of the whole run, whichever node or rank is chosen."""

from __future__ import annotations

from monitoring.dashboards.panels import Builder, Text, number
from monitoring.dashboards.queries import FIRING, RUN, Query, largest, or_zero, rate, series, smallest, total


def ranks_answering(width: int = 3) -> Builder:
    """Fraction of the run's ranks that answer a scrape."""
    answering = f"clamp_max({total(series('rank_up', RUN))} / {largest(series('world_size', RUN))}, 1)"
    return number(
        Text(
            "Ranks that answer",
            "Fraction of the run's ranks that Prometheus reaches: 100 % while the run goes on, 0 after its end.",
            "Less while the run goes on: the missing ranks are dead or can't be reached over the network. See the Cluster dashboard.",
            "A target is down",
        ),
        Query(or_zero(answering), "{{run}}"),
        "percentunit",
        ((None, "red"), (0.9999, "green")),
        width=width,
        limits=(0, 1),
        decimals=0,
    )


def firing_alerts(width: int = 3) -> Builder:
    """Alerts of the run that are firing, by name."""
    return number(
        Text(
            "Firing alerts",
            "Alerts of the run that are firing now, with their number. None is good.",
            "Each links to what to do about it. Begin with the alert that fired first (red marks on the time axis).",
            "First look, in this order",
        ),
        Query(or_zero(f"count by (alertname) ({FIRING})"), "{{alertname}}"),
        "none",
        ((None, "green"), (1, "red")),
        width=width,
        decimals=0,
        words={"0": ("none", "green")},
        name=True,
    )


def data_wait() -> Builder:
    """Fraction of the time that the rank with the longest waits spends waiting for data."""
    return number(
        Text(
            "Data wait, worst rank",
            "Fraction of the time, over about 30 seconds, that a rank waits for its batch, on the rank that waits longest. Nearly 0 is "
            "good, "
            "because the others wait for that rank.",
            "Above a tenth: the data holds the run back. The Data path dashboard shows which part of it.",
            "Data starves",
        ),
        Query(largest(series("data_wait_ratio", RUN)), "{{run}}"),
        "percentunit",
        ((None, "green"), (0.1, "orange"), (0.5, "red")),
        limits=(0, 1),
        decimals=1,
    )


def checkpoint_age() -> Builder:
    """Time since the newest checkpoint: the work that a crash would cost."""
    return number(
        Text(
            "Last checkpoint",
            "Time since the newest checkpoint, which is the work that a crash would take back. It falls to 0 with every save.",
            "More than three of the usual intervals (Checkpoints dashboard): saves fail, or steps have become slow.",
            "A checkpoint fails, or is too old",
        ),
        Query(smallest(series("checkpoint_age_seconds", RUN)), "{{run}}"),
        "s",
        ((None, "green"), (3600, "orange"), (6 * 3600, "red")),
        words={"nan": ("none yet", "blue")},
    )


def images_per_second() -> Builder:
    """Images that all ranks train on per second."""
    return number(
        Text(
            "Images per second",
            "Images that all ranks together train on per second. The same as an hour ago is good; 0 is a run that stands still.",
            "Lower: the row below shows where the time of a step goes. 0: see the heartbeat.",
            "Training does not move",
        ),
        Query(total(rate("images_total", RUN)), "{{run}}"),
        "short",
        ((None, "red"), (0.001, "green")),
    )


def heartbeat() -> Builder:
    """Time since the training loop last made progress, on the rank where that is longest."""
    return number(
        Text(
            "Heartbeat",
            "Time since the training loop last made progress, on the rank where that is longest. About the duration of a step is good; a "
            "save "
            "or a start may take minutes.",
            "It grows: wait for the watchdog, which ends a hanging rank and keeps the stacks of its threads. The Cluster dashboard names "
            "the rank.",
            "Training does not move",
        ),
        Query(largest(series("heartbeat_age_seconds", RUN)), "{{run}}"),
        "s",
        ((None, "green"), (60, "orange"), (900, "red")),
        empty="no rank answers",
    )
