"""Row "Does it learn" of the dashboard "Training": the evaluations on held-back pictures, which rank 0 alone reports, for the whole run."""

from __future__ import annotations

from monitoring.dashboards.frame import Row
from monitoring.dashboards.panels import Builder, Text, curves, states
from monitoring.dashboards.queries import RUN, Query, largest, series

_BASELINE = "The network is no better than a plain colour"
_DEAD = "Maps of the network are dead"
_OUTPUT = "The painting is the same for every picture"
_FEATURES = "The features have collapsed"


def row() -> Row:
    """Builds the row, whichever node or rank is chosen."""
    return Row("Does it learn", [_problems(), _loss(), _gain(), _pixels(), _accuracy(), _probe(), _dead_maps(), _spreads(), _evaluations()])


def _by(label: str, name: str) -> str:
    return f"max by (run, {label}) ({series(name, RUN)})"


def _problems() -> Builder:
    return states(
        Text(
            "Problems of learning",
            "Problems that the evaluations on held-back pictures find: a network that does not beat the stronger baseline, maps that fire "
            "on no picture, a painting or features that are the same for all pictures. Green is good.",
            "Red: the run goes on, but its encoder may be worth nothing. The panels below have the figures, and the event not_learning of "
            "RUN/events.jsonl says it in a sentence.",
            _BASELINE,
        ),
        [Query(_by("problem", "not_learning"), "{{problem}} ({{run}})")],
        {"0": ("no", "green"), "1": ("yes", "red")},
        steps=((None, "green"), (1, "red")),
    )


def _loss() -> Builder:
    return curves(
        Text(
            "Held-back loss and baselines",
            "Loss on pictures that are never trained on: of the network, of one constant colour, and of the mean colour of each picture's "
            "own visible part. Falling like the loss in training is good. The run is judged by its L1, which is in two of the next panels.",
            "Falling loss in training beside a rising one here: the network learns its pictures by heart.",
            _BASELINE,
        ),
        [Query(_by("of", "held_back_loss"), "{{of}} ({{run}})")],
        "short",
        width=12,
        limits=(None, None),
    )


def _gain() -> Builder:
    return curves(
        Text(
            "Gain over the stronger baseline",
            "Fraction of the stronger baseline's held-back L1 that the network has taken away; of recipes that name a class, of its "
            "errors. Above the line at 0 and rising is good.",
            "Below 0: a plain colour paints better than the network does, or a guess is right more often.",
            _BASELINE,
        ),
        [Query(largest(series("held_back_gain_ratio", RUN)), "gain ({{run}})")],
        "percentunit",
        steps=((0, "red"),),
        width=12,
        limits=(None, None),
    )


def _pixels() -> Builder:
    return curves(
        Text(
            "L1 and PSNR of dropped pixels",
            "Over the dropped pixels of held-back pictures, network and baselines. Left: mean absolute error (L1), where 100 % is white "
            "for black. Right: peak signal-to-noise ratio. An L1 below that of both baselines and a higher ratio are good.",
            "Above the lower baseline's L1 for long: the network has learned no more than a colour. The L1 falls and the ratio does not "
            "rise: a few pixels are far off. Look at RUN/pictures/.",
            _BASELINE,
        ),
        [
            Query(_by("of", "held_back_absolute_error_ratio"), "L1, {{of}} ({{run}})"),
            Query(_by("of", "held_back_psnr_decibels"), "PSNR, {{of}} ({{run}})"),
        ],
        "percentunit",
        width=8,
        limits=(None, None),
        right={"PSNR.*": "dB"},
    )


def _accuracy() -> Builder:
    return curves(
        Text(
            "Accuracy of the named classes",
            "Fraction of held-back pictures whose class the network names correctly: the position of a patch, or the label; and that of "
            "guessing. Above both guesses and rising is good. Empty for recipes that paint.",
            "At chance for long: the network has learned nothing of its task. Rising in training and falling here: it learns its pictures "
            "by heart.",
            _BASELINE,
        ),
        [Query(_by("of", "held_back_accuracy_ratio"), "{{of}} ({{run}})")],
        "percentunit",
        width=8,
        limits=(0, 1),
    )


def _probe() -> Builder:
    return curves(
        Text(
            "Probe of the features",
            "Accuracy of two classifiers of held-back pictures by the encoder's features, nearest neighbours and ridge regression, and of "
            "guessing. Above guessing and above the first evaluation, the random start, is good. Empty without labels.",
            "At or below the first evaluation's: the encoder is no better than its random start. A few hundred pictures tell large "
            "differences only.",
            _FEATURES,
        ),
        [Query(_by("classifier", "probe_accuracy_ratio"), "{{classifier}} ({{run}})")],
        "percentunit",
        width=8,
        limits=(0, 1),
    )


def _dead_maps() -> Builder:
    return curves(
        Text(
            "Dead maps by layer",
            "Fraction of each layer's maps that fire on no held-back picture. Near 0 is good.",
            "A rise in the first steps: the learning rate is too high for the start.",
            _DEAD,
        ),
        [Query(_by("layer", "dead_maps_ratio"), "{{layer}} ({{run}})")],
        "percentunit",
        limits=(0, 1),
    )


def _spreads() -> Builder:
    return curves(
        Text(
            "Spread over pictures",
            "Left: spread of the mean painted colour over held-back pictures, relative to that of the true colour; and distance of the "
            "features from their mean, relative to their length. Right: dimensions in which the features vary. Well above 0, and "
            "dimensions well above 1, are good.",
            "A painted spread below 5 %: the same painting for every picture. Features below 1 %, or below 1.5 dimensions: they have "
            "collapsed.",
            _OUTPUT,
        ),
        [
            Query(largest(series("output_spread_ratio", RUN)), "painted colours ({{run}})"),
            Query(largest(series("feature_spread_ratio", RUN)), "features ({{run}})"),
            Query(largest(series("feature_dimensions", RUN)), "dimensions ({{run}})"),
        ],
        "percentunit",
        right={"dimensions.*": "short"},
    )


def _evaluations() -> Builder:
    return curves(
        Text(
            "Evaluations",
            "Left: time that the newest evaluation took, in which training stands still. Right: step of the newest evaluation. Even stairs "
            "are good.",
            "Long next to the time between two evaluations: raise evaluation.every, or lower evaluation.pictures.",
            "First look, in this order",
        ),
        [
            Query(largest(series("evaluation_duration_seconds", RUN)), "duration ({{run}})"),
            Query(largest(series("evaluation_step", RUN)), "step ({{run}})"),
        ],
        "s",
        right={"step.*": "short"},
    )
