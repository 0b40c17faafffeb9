"""Dashboard "Cluster": which rank or node holds up the others, and how large the run was when."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import NEUTRAL, Text, curves, number, ranking, rows
from monitoring.dashboards.queries import RUN, Query, a_step, largest, or_zero, rate, rule, series, smallest, spread

_NAME = "rank {{rank}} on {{node}} ({{run}})"
_NODE = "{{node}} ({{run}})"


def build(runbook: str) -> Dashboard:
    """The dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-cluster",
        "Cluster",
        "Which rank or node holds up the others, how many there were when, and how their machines are.",
        [_state(), _stragglers(), _world(), _machines(), _devices(), _versions()],
        runbook,
    )


def _state() -> Row:
    world = number(
        Text(
            "World size",
            "Ranks in the run as it says itself.",
            "Smaller than what was asked for: it was started again with fewer nodes, and goes on with the same batches.",
            "Killed, preempted, a node lost",
        ),
        Query(largest(series("world_size", RUN)), "{{run}}"),
        "none",
        NEUTRAL,
        decimals=0,
    )
    nodes = number(
        Text(
            "Nodes",
            "Machines whose ranks answer.",
            "Fewer than the scheduler gave: see the targets that are down.",
            "A target is down",
        ),
        Query(f"count by (run) (count by (run, node) ({series('world_size', RUN)}))", "{{run}}"),
        "none",
        NEUTRAL,
        decimals=0,
    )
    down = number(
        Text(
            "Targets down",
            "Endpoints in the run's target files that do not answer. None is good.",
            "The run moves: the network, or --monitoring.address. It does not: it was killed, start it again.",
            "A target is down",
        ),
        Query(or_zero(f"count({series('up', RUN)} == 0)"), "down"),
        "none",
        ((None, "green"), (1, "red")),
        decimals=0,
    )
    skew = number(
        Text(
            "Rank skew",
            "Own time of the slowest rank over that of the median one, over 5 minutes. 1 is good: all ranks go at the pace of the slowest.",
            "Above 1.3 a straggler costs a quarter of the cluster and more: the row below names it.",
            "A straggler",
        ),
        Query(rule("rank_skew:ratio"), "{{run}}"),
        "none",
        ((None, "green"), (1.1, "orange"), (1.3, "red")),
        limits=(1, None),
        decimals=2,
        words={"nan": ("no steps", "blue")},
    )
    shown = f"{series('attempt', RUN)}[$__range]"
    first, last = smallest(f"min_over_time({shown})"), largest(f"max_over_time({shown})")
    restarts = number(
        Text(
            "Restarts",
            "Attempts that began within the time that is shown, the first one left out.",
            "More than the scheduler's preemptions explain: the last lines of RUN/events.jsonl say what ended each.",
            "Killed, preempted, a node lost",
        ),
        Query(f"{last} - {first}", "{{run}}"),
        "none",
        ((None, "green"), (1, "orange"), (5, "red")),
        decimals=0,
    )
    numbers = [state.ranks_answering(), world, nodes, down, skew, state.heartbeat(), restarts, state.firing_alerts()]
    return Row("State of the ranks", numbers)


def _stragglers() -> Row:
    own = curves(
        Text(
            "Own time of a step",
            "Time a rank spends on work of its own in a step, waits for other ranks left out: slowest, median, fastest. Three lines "
            "together are good.",
            "The highest alone above: one straggler. All risen together: it is no straggler, see the phases of the Training dashboard.",
            "A straggler",
        ),
        spread(a_step("own_seconds_total"), "time"),
        "s",
    )
    skew = curves(
        Text(
            "Rank skew over time",
            "Own time of the slowest rank over that of the median one, and the same for each image, since shares of a batch may differ by "
            "one. Both near 1 is good.",
            "It stays above 1.3: drain the node of the slowest rank and let the run restart. It comes and goes: another job on that node.",
            "A straggler",
        ),
        [Query(rule("rank_skew:ratio"), "time ({{run}})"), Query(rule("rank_skew_per_image:ratio"), "time an image ({{run}})")],
        "none",
        steps=((1.3, "red"),),
        limits=(1, None),
    )
    slowest = ranking(
        Text(
            "Slowest ranks",
            "The ten ranks with most work of their own in a step, as it is now. Bars of one length are good.",
            "Take the stacks of the first one (SIGUSR2) and look at its node: clocks and temperatures, other jobs, disk.",
            "A straggler",
        ),
        Query(f"topk(10, {a_step('own_seconds_total')})", _NAME),
        "s",
        NEUTRAL,
    )
    waiting = ranking(
        Text(
            "Ranks that wait longest for data",
            "The ten ranks with the largest share of their time spent waiting for data, as it is now.",
            "All on one node: its disk, its cores or its network. Spread over all: the Data path dashboard.",
            "Data starves",
        ),
        Query(f"topk(10, {series('data_wait_ratio')})", _NAME),
        "percentunit",
        ((None, "green"), (0.1, "orange"), (0.5, "red")),
        largest=1,
    )
    silent = ranking(
        Text(
            "Silent ranks",
            "The ten ranks whose loop moved on longest ago, as it is now.",
            "One far above the others hangs in work of its own; all alike wait in the same collective.",
            "Training does not move",
        ),
        Query(f"topk(10, {series('heartbeat_age_seconds')})", _NAME),
        "s",
        ((None, "green"), (60, "orange"), (900, "red")),
    )
    gone = ranking(
        Text(
            "Ranks that do not answer",
            "Ten ranks, first those that their node's endpoint can not reach. All that answer is good; a node that is gone is not here.",
            "The rank is stopped, dead or out of memory: the log of its node says which, and its stacks if it still lives.",
            "Killed, preempted, a node lost",
        ),
        Query(f"bottomk(10, {series('rank_up')})", _NAME),
        "none",
        ((None, "red"), (1, "green")),
        largest=1,
        words={"0": ("silent", "red"), "1": ("answers", "green")},
    )
    return Row("Who holds up the others", [own, skew, slowest, waiting, silent, gone])


def _world() -> Row:
    size = curves(
        Text(
            "World size over time",
            "Ranks in the run as it says itself, and those that Prometheus reaches. The same is good.",
            "A step is a restart with other nodes. Fewer that answer: dead ranks, or targets that can't be reached.",
            "Killed, preempted, a node lost",
        ),
        [Query(largest(series("world_size", RUN)), "in the run ({{run}})"), Query(rule("ranks:count"), "that answer ({{run}})")],
        "none",
    )
    attempts = curves(
        Text(
            "Attempts",
            "Attempt of the run, from 1, and how many times the launcher has started the ranks of this job again.",
            "Stairs without progress: the same error again and again; exit codes and reasons are in RUN/slurm/attempts.jsonl.",
            "Killed, preempted, a node lost",
        ),
        [
            Query(largest(series("attempt", RUN)), "attempt ({{run}})"),
            Query(largest(series("launcher_restarts", RUN)), "restarts by the launcher ({{run}})"),
        ],
        "none",
    )
    apart = curves(
        Text(
            "Steps apart",
            "Step of the rank that is furthest, less that of the last one. 0 or 1 is good: ranks go in step.",
            "More: a rank that Prometheus still sees is of an earlier attempt, or hangs.",
            "Training does not move",
        ),
        [Query(f"{largest(series('step'))} - {smallest(series('step'))}", "{{run}}")],
        "none",
    )
    return Row("World", [size, attempts, apart])


def _machines() -> Row:
    memory = curves(
        Text(
            "Memory of the nodes",
            "Share of a machine's memory that is in use: the five fullest nodes.",
            "Towards 95 % the kernel kills: lower data.ready_batches or data.threads, or data.cache_gb where the cache is in /dev/shm.",
            "Killed, preempted, a node lost",
        ),
        [Query(f"topk(5, max by (run, node) ({series('host_memory_used_bytes')} / {series('host_memory_total_bytes')}))", _NODE)],
        "percentunit",
        steps=((0.95, "red"),),
        limits=(0, 1),
    )
    process = curves(
        Text(
            "Memory of a rank",
            "Resident memory of the process: largest, median, smallest rank. Flat after the first epoch is good.",
            "One that rises for hours is a leak: its stacks and its settings belong into a report.",
            "Killed, preempted, a node lost",
        ),
        spread(series("process_resident_memory_bytes"), "rank"),
        "bytes",
    )
    cores = curves(
        Text(
            "Cores of a rank",
            "Processor cores that a rank keeps busy: busiest, median, idlest.",
            "All at the number of cores that the rank has, with empty queues: decoding is the limit.",
            "Data starves",
        ),
        spread(rate("process_cpu_seconds_total"), "rank"),
        "none",
    )
    files = curves(
        Text(
            "Open files",
            "Share of the open files that a process may have: the rank with most.",
            "Towards 100 %: raise the limit (ulimit -n) for the job; a rise for hours is a leak.",
            "First look, in this order",
        ),
        [Query(largest(f"{series('process_open_fds')} / {series('process_max_fds')}"), "{{run}}")],
        "percentunit",
        steps=((0.9, "red"),),
        width=24,
        limits=(0, 1),
    )
    return Row("Machines", [memory, process, cores, files])


def _devices() -> Row:
    busy = curves(
        Text(
            "GPUs at work",
            "Share of the time in which a rank's GPU ran anything: busiest, median, idlest. Near 100 % is good; absent without GPUs.",
            "All low: the phases of the Training dashboard say what they wait for. One low and the others high: they wait for it.",
            "A straggler",
        ),
        spread(series("gpu_utilisation_ratio"), "GPU"),
        "percentunit",
        width=12,
        limits=(0, 1),
    )
    memory = curves(
        Text(
            "Memory of the GPUs",
            "Share of a GPU's memory that is in use: fullest, median, emptiest. The same on all is good; absent without GPUs.",
            "Towards 100 %: lower training.micro_batch, which changes the result only by the order of additions, or take "
            "--training.mode zero2.",
            "Killed, preempted, a node lost",
        ),
        spread(f"{series('gpu_memory_used_bytes')} / {series('gpu_memory_total_bytes')}", "GPU"),
        "percentunit",
        steps=((0.97, "red"),),
        width=12,
        limits=(0, 1),
    )
    return Row("GPUs", [busy, memory])


def _versions() -> Row:
    table = rows(
        Text(
            "Versions",
            "What the ranks run: recipe, versions of this project and of PyTorch. One line a run is good.",
            "Two lines: nodes with different environments, which decode or compute differently. Make them alike and start again.",
            "A straggler",
        ),
        Query(f"count by (run, recipe, version, torch) ({series('build_info')})", ""),
        "none",
        hidden=["Time"],
    )
    return Row("What runs", [table])
