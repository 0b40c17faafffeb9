"""The numbers of the first row that more than one dashboard begins with: they are the run's, whichever node or rank is chosen."""

from __future__ import annotations

from monitoring.dashboards.panels import Builder, Text, number
from monitoring.dashboards.queries import FIRING, RUN, Query, largest, or_zero, rate, series, smallest, total


def ranks_answering(width: int = 3) -> Builder:
    """Whether all of the run is there."""
    share = f"clamp_max({total(series('rank_up', RUN))} / {largest(series('world_size', RUN))}, 1)"
    return number(
        Text(
            "Ranks that answer",
            "Share of the run's ranks that Prometheus reaches: 100 % while it runs, 0 when it has ended.",
            "Less while the run goes on: the missing ones are dead, or the network keeps them apart: see the Cluster dashboard.",
            "A target is down",
        ),
        Query(or_zero(share), "{{run}}"),
        "percentunit",
        ((None, "red"), (0.9999, "green")),
        width=width,
        limits=(0, 1),
        decimals=0,
    )


def firing_alerts(width: int = 3) -> Builder:
    """What Prometheus already says, by name."""
    return number(
        Text(
            "Firing alerts",
            "Alerts of the run that are firing now, by name and how many; none is good.",
            "Each has a link of its own to what to do; begin with the one that began first (red marks on the time axis).",
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
    """What holds most runs back."""
    return number(
        Text(
            "Data wait, worst rank",
            "Share of the time, over about 30 seconds, that the rank which waits longest waits for its batch. Nearly 0 is good: the others "
            "wait for it.",
            "Above a tenth the data holds the run back: the Data path dashboard says which part of it.",
            "Data starves",
        ),
        Query(largest(series("data_wait_ratio", RUN)), "{{run}}"),
        "percentunit",
        ((None, "green"), (0.1, "orange"), (0.5, "red")),
        limits=(0, 1),
        decimals=1,
    )


def checkpoint_age() -> Builder:
    """What a crash would cost."""
    return number(
        Text(
            "Last checkpoint",
            "Time since the newest checkpoint: the work that a crash would take back. It falls to 0 with every save.",
            "More than three of the usual intervals (Checkpoints dashboard): saves fail, or steps have become slow.",
            "A checkpoint fails, or is too old",
        ),
        Query(smallest(series("checkpoint_age_seconds", RUN)), "{{run}}"),
        "s",
        ((None, "green"), (3600, "orange"), (6 * 3600, "red")),
        words={"nan": ("none yet", "blue")},
    )


def images_per_second() -> Builder:
    """The speed of the run."""
    return number(
        Text(
            "Images a second",
            "Images that all ranks together train on in a second. It should be what it was an hour ago; 0 is a run that stands still.",
            "Fallen: see where the time of a step goes, in the row below. 0: see the heartbeat.",
            "Training does not move",
        ),
        Query(total(rate("images_total", RUN)), "{{run}}"),
        "short",
        ((None, "red"), (0.001, "green")),
    )


def heartbeat() -> Builder:
    """Whether it moves."""
    return number(
        Text(
            "Heartbeat",
            "Time since the loop of the rank that stands longest last moved on. Of the order of a step is good; a save or a start may take "
            "minutes.",
            "It grows: wait for the watchdog, which ends a rank that hangs with the stacks of its threads; the Cluster dashboard names "
            "the rank.",
            "Training does not move",
        ),
        Query(largest(series("heartbeat_age_seconds", RUN)), "{{run}}"),
        "s",
        ((None, "green"), (60, "orange"), (900, "red")),
        empty="nobody answers",
    )
