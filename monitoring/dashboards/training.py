"""Dashboard "Training": the health of the run, where its time goes, and how it learns."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import learning, state
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
"""Phase of a step -> its colour. Phases that compute nothing are red to yellow."""


def build(runbook: str) -> Dashboard:
    """Builds the dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-training",
        "Training",
        "The health of a run, where its time goes, and how it learns.",
        [_state(), _time(), learning.row(), _losses(), _optimisation()],
        runbook,
    )


def _state() -> Row:
    progress = number(
        Text(
            "Progress",
            "Fraction of the run's steps that are done, over all its attempts.",
            "It falls only when a restart takes back steps that no checkpoint holds.",
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
            "Time left to the last step at the present speed, not counting restarts.",
            "Too long: see what holds the run back, or give it more nodes at any restart.",
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
    # `instance` stays among the matched labels, because a restarted rank has two of them for a moment
    slowest = f"max by (phase) ({rate('step_phase_seconds_sum')} / ignoring (phase) group_left () {steps})"
    split = curves(
        Text(
            "Where the time of a step goes",
            "Seconds of a mean step by phase, stacked, mean of the chosen ranks. Nearly all in forward and backward is good.",
            "Red at the bottom is waiting for data, orange on top is waiting for other ranks. The largest of them holds the run back.",
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
            "Seconds per step in each phase, on the rank where that phase is longest, which the mean beside it hides. Close to the mean "
            "is good.",
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
            "Duration of steps, including the wait for data: median and tails over the chosen ranks. Tails close to the median are good.",
            "Tails far above the median are occasional stalls: data, a save, another job on the node.",
            "Data starves",
        ),
        percentiles("step_seconds"),
        "s",
    )
    throughput = curves(
        Text(
            "Images trained on",
            "Images per second of all chosen ranks together. A constant level is good.",
            "A lower level after a restart: fewer ranks. A lower level without one: a phase above has grown.",
            "A straggler",
        ),
        [Query(total(rate("images_total")), "{{run}}")],
        "short",
    )
    use = curves(
        Text(
            "Use of the devices",
            "Left: floating-point operations of the model per second, all chosen ranks. Right: fraction of the devices' peak, best and "
            "worst "
            "rank; absent where the peak is unknown, as on CPUs without monitoring.peak_teraflops.",
            "Low although the phases show little waiting: a larger training.micro_batch, mixed precision, more of the step on the device.",
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


def _losses() -> Row:
    painters = series("loss", only='player!="discriminator"')
    losses = curves(
        Text(
            "Losses",
            "The loss that the painting network minimises, and its parts, over the global batch of the last logged step. It should fall "
            "and "
            "then flatten; the scale is logarithmic.",
            "It rises or jumps: look at RUN/pictures/, at the gradient norms, and at the settings that changed at the last restart.",
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
            "Left: fraction of the real and of the generated regions that the discriminator judges correctly; 50 % is guessing. Right: its "
            "loss, 1.39 when guessing. Values in between are good. Empty for a recipe without a discriminator.",
            "Both accuracies above the line of 99.9 % and the loss near 0: the discriminator has won, and the generator learns from the "
            "reconstruction loss alone.",
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
            "Warnings of the run itself",
            "States that the run itself reports: ranks that starve for data, and players whose losses look like a collapse. Green is good.",
            "Red: the run goes on, but slower or learning less. The event in RUN/events.jsonl has the numbers.",
            "Data starves",
        ),
        [
            Query(total(series("data_starving")), "starving ranks ({{run}})"),
            Query(f"max by (run, player) ({series('collapsed')})", "collapse of the {{player}} ({{run}})"),
        ],
        {"0": ("no", "green")},
        steps=((None, "green"), (1, "red")),
    )
    return Row("Losses in training", [losses, discriminator, signs])


def _optimisation() -> Row:
    norms = curves(
        Text(
            "Gradient norms",
            "Norm of each player's gradient in the last logged step, before clipping. The scale is logarithmic.",
            "A rise over many steps often precedes losses that are not finite: set --training.max_gradient_norm, or lower the learning "
            "rate.",
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
            "Learning rate of each player, as the schedule sets it.",
            "Not as expected: RUN/config.yaml has the settings, and the run prints at a restart which of them changed.",
            "Going back",
        ),
        [Query(f"max by (run, player) ({series('learning_rate')})", "{{player}} ({{run}})")],
        "sci",
    )
    skipped = curves(
        Text(
            "Steps that are not finite",
            "Steps with a loss or gradient that is not finite, and those of them whose update was skipped; all ranks see the same. "
            "None is good; an occasional one in bf16 is harmless.",
            "Several in a row end the run, which keeps its last checkpoint: lower the learning rate, or limit the norm of the gradient.",
            "Losses or gradients that are not finite",
        ),
        [
            Query(largest(increase("nonfinite_steps_total")), "not finite ({{run}})"),
            Query(largest(increase("skipped_steps_total")), "update skipped ({{run}})"),
        ],
        "short",
        bars=True,
    )
    steps = curves(
        Text(
            "Steps and epochs",
            "Left: steps of the run over all its attempts. Right: epoch of the batch, from 0. Straight lines are good.",
            "A step down: a restart that took steps back. A flat part: a run that stood still.",
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
            "Fraction of the pixels of the last logged batch that the masks drop, highest and lowest rank. It varies from "
            "batch to batch around the value that method.mask asks for.",
            "Far from that value: RUN/config.yaml shows whether the run has the settings that you intended.",
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
