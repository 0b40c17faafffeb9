"""Dashboard "Training": is the run healthy, what holds it back, what does it learn."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import NEUTRAL, Text, curves, number, states
from monitoring.dashboards.queries import RUN, Query, increase, largest, percentiles, rate, series, smallest, total

PHASES = {
    "data_wait": "red",
    "host_to_device": "yellow",
    "forward": "blue",
    "backward": "dark-blue",
    "optimiser": "purple",
    "collective": "orange",
}
"""Phase of a step -> its colour: what is no computation is red to yellow."""


def build(runbook: str) -> Dashboard:
    """The dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-training",
        "Training",
        "Whether a run is healthy, what holds it back, and what it learns.",
        [_state(), _time(), _learning(), _optimisation()],
        runbook,
    )


def _state() -> Row:
    progress = number(
        Text(
            "Progress",
            "Share of the run's steps that are done, over all its attempts.",
            "It falls only where a restart takes steps back that no checkpoint holds.",
            "Killed, preempted, a node lost",
        ),
        Query(largest(series("progress_ratio", RUN)), "{{run}}"),
        "percentunit",
        NEUTRAL,
        limits=(0, 1),
        decimals=1,
    )
    eta = number(
        Text(
            "Time left",
            "Time to the last step at the present speed, restarts not counted.",
            "Later than you can wait: see what holds the run back, or give it more nodes at any restart.",
            "First look, in this order",
        ),
        Query(largest(series("eta_seconds", RUN)), "{{run}}"),
        "s",
        NEUTRAL,
        words={"nan": ("not known yet", "blue")},
    )
    numbers = [
        state.ranks_answering(),
        state.heartbeat(),
        progress,
        eta,
        state.images_per_second(),
        state.data_wait(),
        state.checkpoint_age(),
        state.firing_alerts(),
    ]
    return Row("State of the run", numbers)


def _time() -> Row:
    steps = rate("step_seconds_count")
    mean = f"sum by (phase) ({rate('step_phase_seconds_sum')}) / on () group_left () sum({steps})"
    # `instance` stays among the labels that match: a restarted rank has two of them for a moment
    slowest = f"max by (phase) ({rate('step_phase_seconds_sum')} / ignoring (phase) group_left () {steps})"
    split = curves(
        Text(
            "Where the time of a step goes",
            "Seconds of a mean step by phase, stacked, mean of the chosen ranks. Forward and backward should be nearly all of it.",
            "Red at the bottom is data, orange on top is waiting for other ranks: what is largest holds the run back.",
            "First look, in this order",
        ),
        [Query(mean, "{{phase}}")],
        "s",
        width=12,
        stacked=True,
        colours=PHASES,
    )
    worst = curves(
        Text(
            "Longest phases",
            "Seconds a step that the rank with the longest of each phase spends in it: what the mean beside it hides.",
            "A phase that is much longer here than in the mean is one rank's or one node's: the Cluster dashboard names it. Collective is "
            "long on the ranks that wait and short on the one that they wait for.",
            "A straggler",
        ),
        [Query(slowest, "{{phase}}")],
        "s",
        width=12,
        colours=PHASES,
    )
    duration = curves(
        Text(
            "Duration of steps",
            "How long steps take, the wait for data included: median and tails over the chosen ranks.",
            "Tails far above the median are stalls now and then: data, a save, another job on the node.",
            "Data starves",
        ),
        percentiles("step_seconds"),
        "s",
    )
    throughput = curves(
        Text(
            "Images trained on",
            "Images a second of all chosen ranks together. Steps down to a lower level are what to look for.",
            "At a restart with fewer ranks it falls with them; else something in the phases above has grown.",
            "A straggler",
        ),
        [Query(total(rate("images_total")), "{{run}}")],
        "short",
    )
    use = curves(
        Text(
            "Use of the devices",
            "Left: floating-point operations of the model a second, all chosen ranks. Right: share of the devices' peak, best and worst "
            "rank; absent where the peak is unknown, as on processors.",
            "Low although the phases show little waiting: larger training.micro_batch, mixed precision, more of the step on the device.",
            "First look, in this order",
        ),
        [
            Query(total(series("model_flops_per_second")), "FLOP/s ({{run}})"),
            Query(largest(series("model_flop_utilisation_ratio")), "best utilisation ({{run}})"),
            Query(smallest(series("model_flop_utilisation_ratio")), "worst utilisation ({{run}})"),
        ],
        "flops",
        right={".*utilisation.*": "percentunit"},
    )
    return Row("Where the time goes", [split, worst, duration, throughput, use])


def _learning() -> Row:
    painters = series("loss", only='player!="discriminator"')
    losses = curves(
        Text(
            "Losses",
            "What the network that paints minimises, and its parts, over the global batch of the last logged step. Falls, then flattens; "
            "the scale is logarithmic.",
            "It rises or jumps: look at RUN/pictures/, at the gradient norms, and at what changed at the last restart.",
            "Losses or gradients that are not finite",
        ),
        [Query(f"max by (run, player, part) ({painters})", "{{player}} {{part}} ({{run}})")],
        "short",
        width=12,
        limits=(None, None),
        logarithmic=True,
    )
    accuracy = f"max by (run, kind) ({series('discriminator_accuracy_ratio')})"
    judge = series("loss", only='player="discriminator",part="adversarial"')
    discriminator = curves(
        Text(
            "Discriminator",
            "Left: share of the real and of the generated regions that it judges right; 50 % is guessing. Right: its loss, 1.39 when "
            "guessing. In between is a game that teaches. Empty where a recipe has no discriminator.",
            "Both above the line of 99.9 % and the loss near 0: it has won, and the generator learns from the reconstruction alone.",
            "The discriminator has collapsed",
        ),
        [
            Query(accuracy, "right on {{kind}} ({{run}})"),
            Query(f"max by (run) ({judge})", "loss ({{run}})"),
        ],
        "percentunit",
        steps=((0.999, "red"),),
        width=12,
        limits=(0, 1),
        right={"loss.*": "short"},
    )
    signs = states(
        Text(
            "Signs of the run itself",
            "What the run reports of itself: ranks that starve for data, and players whose losses look like a collapse. Green is good.",
            "Red: the run goes on, slower or learning less. The event in RUN/events.jsonl has the numbers.",
            "Data starves",
        ),
        [
            Query(total(series("data_starving")), "starving ranks ({{run}})"),
            Query(f"max by (run, player) ({series('collapsed')})", "collapse of the {{player}} ({{run}})"),
        ],
        {"0": ("no", "green")},
        steps=((None, "green"), (1, "red")),
    )
    return Row("What it learns", [losses, discriminator, signs])


def _optimisation() -> Row:
    norms = curves(
        Text(
            "Gradient norms",
            "Norm of each player's gradient in the last logged step, before it is scaled down. Logarithmic.",
            "A rise over many steps comes before losses that are not finite: --training.max_gradient_norm, or a lower learning rate.",
            "Losses or gradients that are not finite",
        ),
        [Query(f"max by (run, player) ({series('gradient_norm')})", "{{player}} ({{run}})")],
        "short",
        limits=(None, None),
        logarithmic=True,
    )
    rates = curves(
        Text(
            "Learning rates",
            "Learning rate of each player, as the schedule has it.",
            "Not what you expect: RUN/config.yaml has the settings, and the run says at a restart which of them changed.",
            "Going back",
        ),
        [Query(f"max by (run, player) ({series('learning_rate')})", "{{player}} ({{run}})")],
        "sci",
    )
    skipped = curves(
        Text(
            "Steps that are not finite",
            "Steps with a loss or gradient that is not finite, and those of them whose update was left out; all ranks see the same. "
            "None is good, one now and then in bf16 is harmless.",
            "Several in a row end the run with its last checkpoint: a lower learning rate or a limit for the gradient's norm.",
            "Losses or gradients that are not finite",
        ),
        [
            Query(largest(increase("nonfinite_steps_total")), "not finite ({{run}})"),
            Query(largest(increase("skipped_steps_total")), "update left out ({{run}})"),
        ],
        "short",
        bars=True,
    )
    steps = curves(
        Text(
            "Steps and epochs",
            "Left: steps of the run over all its attempts. Right: epoch of the batch, from 0. Straight lines are good.",
            "A step down is a restart that took steps back; a flat part is a run that stood still.",
            "Killed, preempted, a node lost",
        ),
        [Query(largest(series("step")), "step ({{run}})"), Query(largest(series("epoch")), "epoch ({{run}})")],
        "short",
        width=12,
        right={"epoch.*": "short"},
    )
    coverage = curves(
        Text(
            "Dropped pixels",
            "Share of the pixels of the last logged batch that the masks drop, highest and lowest rank. It varies from "
            "batch to batch around what method.mask asks for.",
            "Far from that: another configuration than you think, RUN/config.yaml has the one that runs.",
            "Going back",
        ),
        [
            Query(largest(series("mask_coverage_ratio")), "highest ({{run}})"),
            Query(smallest(series("mask_coverage_ratio")), "lowest ({{run}})"),
        ],
        "percentunit",
        width=12,
        limits=(0, 1),
    )
    return Row("Steps", [norms, rates, skipped, steps, coverage])
