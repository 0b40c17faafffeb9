"""Dashboard "Cluster": the rank or node that holds up the others, the size of the run over time, and its machines."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import NEUTRAL, Text, curves, number, ranking, rows
from monitoring.dashboards.queries import RUN, Query, a_step, largest, or_zero, rate, rule, series, smallest, spread

_NAME = "rank {{rank}} on {{node}} ({{run}})"
_NODE = "{{node}} ({{run}})"


def build(runbook: str) -> Dashboard:
    """Builds the dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-cluster",
        "Cluster",
        "The rank or node that holds up the others, the size of the run over time, and the state of its machines.",
        [_state(), _stragglers(), _world(), _machines(), _devices(), _versions()],
        runbook,
    )


def _state() -> Row:
    world = number(
        Text(
            "World size",
            "Ranks in the run, as the run reports them. The number that you asked for is good.",
            "Smaller: the run was restarted with fewer nodes, and goes on with the same batches.",
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
            "Machines whose ranks answer a scrape.",
            "Fewer than the scheduler allocated: see the targets that are down.",
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
            "The run makes progress: the network, or --monitoring.address. It does not: it was killed, start it again.",
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
            "Own time of the slowest rank relative to the median rank, over 5 minutes. 1 is good, because the slowest rank sets the pace.",
            "Above 1.3: a straggler costs a quarter of the cluster or more. The row below names it.",
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
            "Attempts that began within the time shown, without the first one.",
            "More than the scheduler's preemptions explain: the last lines of RUN/events.jsonl have the reason of each end.",
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
            "Time that a rank spends on its own work in a step, without waits for other ranks: slowest, median, fastest. Three lines "
            "together are good.",
            "Only the highest is above the others: one straggler. All rise together: see the phases of the Training dashboard.",
            "A straggler",
        ),
        spread(a_step("own_seconds_total"), "time"),
        "s",
    )
    skew = curves(
        Text(
            "Rank skew over time",
            "Own time of the slowest rank relative to the median rank, also per image, because the ranks' parts of a batch may differ "
            "by one image. Both near 1 is good.",
            "It stays above 1.3: drain the node of the slowest rank and let the run restart. It comes and goes: another job on that node.",
            "A straggler",
        ),
        [Query(rule("rank_skew:ratio"), "time ({{run}})"), Query(rule("rank_skew_per_image:ratio"), "time per image ({{run}})")],
        "none",
        steps=((1.3, "red"),),
        limits=(1, None),
    )
    slowest = ranking(
        Text(
            "Slowest ranks",
            "The ten ranks with the most work of their own in a step, now. Bars of equal length are good.",
            "Take the stacks of the first one (SIGUSR2) and check its node: clocks and temperatures, other jobs, disk.",
            "A straggler",
        ),
        Query(f"topk(10, {a_step('own_seconds_total')})", _NAME),
        "s",
        NEUTRAL,
    )
    waiting = ranking(
        Text(
            "Ranks that wait longest for data",
            "The ten ranks that wait for data for the largest fraction of the time, now. Short bars are good.",
            "All on one node: its disk, its cores or its network. Spread over all nodes: see the Data path dashboard.",
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
            "The ten ranks whose training loop made progress longest ago, now. About the duration of a step is good.",
            "One far above the others: it hangs in its own work. All alike: they wait in the same collective.",
            "Training does not move",
        ),
        Query(f"topk(10, {series('heartbeat_age_seconds')})", _NAME),
        "s",
        ((None, "green"), (60, "orange"), (900, "red")),
    )
    gone = ranking(
        Text(
            "Ranks that do not answer",
            "Ten ranks, first those that their node's endpoint can not reach. All answering is good; a lost node is not shown here.",
            "The rank is stopped, dead or out of memory. The log of its node shows which, and so do its stacks if it is alive.",
            "Killed, preempted, a node lost",
        ),
        Query(f"bottomk(10, {series('rank_up')})", _NAME),
        "none",
        ((None, "red"), (1, "green")),
        largest=1,
        words={"0": ("silent", "red"), "1": ("answers", "green")},
    )
    return Row("Ranks that hold up the others", [own, skew, slowest, waiting, silent, gone])


def _world() -> Row:
    size = curves(
        Text(
            "World size over time",
            "Ranks in the run, as the run reports them, and those that Prometheus reaches. Equal is good.",
            "A step: a restart with other nodes. Fewer that answer: dead ranks, or targets that can't be reached.",
            "Killed, preempted, a node lost",
        ),
        [Query(largest(series("world_size", RUN)), "in the run ({{run}})"), Query(rule("ranks:count"), "that answer ({{run}})")],
        "none",
    )
    attempts = curves(
        Text(
            "Attempts",
            "Number of the run's attempt, from 1, and number of times that the launcher has restarted the ranks of this job. Flat is good.",
            "Stairs without progress: the same error repeats. RUN/slurm/attempts.jsonl has exit codes and reasons.",
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
            "Distance in steps",
            "Step of the rank that is furthest, minus that of the last one. 0 or 1 is good, because ranks go in step.",
            "More: a rank that Prometheus still sees belongs to an earlier attempt, or hangs.",
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
            "Fraction of a machine's memory that is in use: the five fullest nodes. Below 90 % is good.",
            "Near 95 % the kernel kills processes: lower data.ready_batches, data.threads, or data.cache_gb of a cache in /dev/shm.",
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
            "It rises for hours: a leak. Report it with the stacks and the settings of the run.",
            "Killed, preempted, a node lost",
        ),
        spread(series("process_resident_memory_bytes"), "rank"),
        "bytes",
    )
    cores = curves(
        Text(
            "Cores of a rank",
            "CPU cores that a rank keeps busy: busiest, median, idlest rank.",
            "All at the number of cores that a rank has, with empty queues: decoding is the limit.",
            "Data starves",
        ),
        spread(rate("process_cpu_seconds_total"), "rank"),
        "none",
    )
    files = curves(
        Text(
            "Open files",
            "Open files as a fraction of the limit of a process, on the rank with the most. Constant is good.",
            "Near 100 %: raise the limit (ulimit -n) of the job. It rises for hours: a leak.",
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
            "Fraction of the time in which a rank's GPU ran a kernel: busiest, median, idlest. Near 100 % is good; absent without GPUs.",
            "All low: the phases of the Training dashboard show what they wait for. One low, the others high: they wait for that GPU.",
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
            "Fraction of a GPU's memory that is in use: fullest, median, emptiest. Equal is good; absent without GPUs.",
            "Near 100 %: lower training.micro_batch, which changes the result only by the order of additions, or use "
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
            "Recipe and versions of this project and of PyTorch that the ranks run. One line per run is good.",
            "Two lines: nodes with different environments, which decode or compute differently. Make them equal and start again.",
            "A straggler",
        ),
        Query(f"count by (run, recipe, version, torch) ({series('build_info')})", ""),
        "none",
        hidden=["Time"],
    )
    return Row("Software", [table])
