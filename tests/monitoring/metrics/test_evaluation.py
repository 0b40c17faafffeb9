"""The figures of an evaluation on held-back pictures, and the problems that evaluations find, become gauges of rank 0."""

from __future__ import annotations

import json
import math
import urllib.request
from typing import Any

import pytest
from torch import nn

from monitoring import PREFIX, MetricsServer, MonitoringConfig, RunMetrics
from monitoring.metrics.definitions import CLASSIFIERS, DEFINITIONS, GUESSERS, PAINTERS, PROBLEMS
from monitoring.metrics.run_metrics import OTHER
from pipeline.model.features_network import FeaturesNetwork
from pipeline.model.inpainting_network import Generator
from tests.monitoring.metrics.scraped import EVALUATION, families, value

OF_EVALUATIONS = [each for each in DEFINITIONS if each.only_on_first_rank and each.name != "not_learning"]


def readings(metrics: RunMetrics) -> dict[str, float]:
    """Returns the value of every gauge that evaluations set, by its name and its one label."""
    exposed = families(metrics)
    samples = [(each, sample) for each in OF_EVALUATIONS for sample in exposed[PREFIX + each.name].samples]
    return {" ".join((each.name, *(sample.labels[label] for label in each.labels))): sample.value for each, sample in samples}


def test_every_figure_of_an_evaluation_is_shown_in_base_units(metrics: RunMetrics) -> None:
    metrics.evaluation(EVALUATION)
    found = readings(metrics)
    accuracies = [found.pop(f"held_back_accuracy_ratio {guesser}") for guesser in GUESSERS]
    assert all(map(math.isnan, accuracies)), "paintings have no accuracy"
    assert found == pytest.approx(
        {
            "held_back_loss network": 0.36,
            "held_back_loss constant": 0.48,
            "held_back_loss visible_mean": 0.4,
            "held_back_absolute_error_ratio network": 0.09,
            "held_back_absolute_error_ratio constant": 0.12,
            "held_back_absolute_error_ratio visible_mean": 0.1,
            "held_back_psnr_decibels network": 18.0,
            "held_back_psnr_decibels constant": 15.0,
            "held_back_psnr_decibels visible_mean": 16.0,
            "held_back_gain_ratio": 0.1,
            "dead_maps_ratio relu1": 0.0,
            "dead_maps_ratio relu5": 0.25,
            "dead_maps_ratio decoder.relu1": 1 / 128,
            "output_spread_ratio": 0.4,
            "feature_dimensions": 12.5,
            "feature_spread_ratio": 0.7,
            "probe_accuracy_ratio chance": 0.025,
            "probe_accuracy_ratio knn": 0.2,
            "probe_accuracy_ratio ridge": 0.3,
            "evaluation_duration_seconds": 1.5,
            "evaluation_step": 100.0,
        }
    )


def test_accuracies_are_shown_beside_those_of_guessing_and_errors_of_pixels_are_unknown(metrics: RunMetrics) -> None:
    guesses = {"chance": {"loss": 3.7, "accuracy": 0.025}, "largest_class": {"loss": 3.6, "accuracy": 0.04}}
    metrics.evaluation({"step": 100, "pictures": 256, "loss": 3.0, "accuracy": 0.3, "baselines": guesses, "gain": 0.27, "seconds": 1.5})
    found = readings(metrics)
    assert [found[f"held_back_accuracy_ratio {guesser}"] for guesser in GUESSERS] == [0.3, 0.025, 0.04]
    assert (found["held_back_loss network"], found["held_back_gain_ratio"]) == (3.0, 0.27)
    assert math.isnan(found["held_back_absolute_error_ratio network"])
    assert math.isnan(found["output_spread_ratio"])


def test_before_the_first_evaluation_all_is_unknown_and_no_problem_is_found(metrics: RunMetrics) -> None:
    found = readings(metrics)
    assert all(map(math.isnan, found.values()))
    assert {name for name in found if name.startswith("held_back_loss")} == {f"held_back_loss {painter}" for painter in PAINTERS}
    assert {name for name in found if name.startswith("probe_")} == {f"probe_accuracy_ratio {each}" for each in CLASSIFIERS}
    assert {sample.labels["problem"]: sample.value for sample in families(metrics)[f"{PREFIX}not_learning"].samples} == dict.fromkeys(
        PROBLEMS, 0
    )


def test_the_newest_evaluation_replaces_the_one_before_it(metrics: RunMetrics) -> None:
    metrics.evaluation(EVALUATION)
    metrics.evaluation({**EVALUATION, "step": 200, "gain": -0.05, "dead_maps": {"relu1": 96, "relu5": 0}, "probe": None})
    assert value(metrics, "evaluation_step") == 200
    assert value(metrics, "held_back_gain_ratio") == -0.05
    assert value(metrics, "dead_maps_ratio", layer="relu1") == 1
    assert value(metrics, "dead_maps_ratio", layer="relu5") == 0
    assert math.isnan(value(metrics, "dead_maps_ratio", layer="decoder.relu1")), "its count is missing"
    for classifier in CLASSIFIERS:
        assert math.isnan(value(metrics, "probe_accuracy_ratio", classifier=classifier)), "the newest evaluation has no labels"


def test_a_problem_is_1_while_it_lasts(metrics: RunMetrics) -> None:
    for problem in PROBLEMS:
        metrics.learning(problem, True)
        assert {name: value(metrics, "not_learning", problem=name) for name in PROBLEMS} == {
            name: float(name == problem) for name in PROBLEMS
        }
        metrics.learning(problem, False)
    assert {value(metrics, "not_learning", problem=name) for name in PROBLEMS} == {0}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"loss": None, "l1": "9", "psnr": math.inf, "gain": math.nan, "seconds": []},
        {"baselines": None, "maps": None, "dead_maps": [], "probe": 3},
        {"baselines": {"constant": None}, "maps": {"relu1": 0, "relu2": None, "relu3": 3}, "dead_maps": {"relu1": 0, "relu3": "x"}},
    ],
    ids=["empty", "numbers", "parts", "parts of parts"],
)
def test_an_odd_row_never_stops_the_training(metrics: RunMetrics, odd: dict[str, Any]) -> None:
    metrics.evaluation(EVALUATION)
    metrics.evaluation(odd)
    found = readings(metrics)
    kept = {name for name in found if name.startswith("dead_maps_ratio") and name.split()[1] not in (odd.get("maps") or {})}
    known = {name: number for name, number in found.items() if name not in kept and not math.isnan(number)}
    assert known == pytest.approx(
        {"held_back_absolute_error_ratio network": 0.09, "held_back_psnr_decibels network": math.inf} if "l1" in odd else {}
    )


def test_a_row_read_back_from_its_file_is_the_same(metrics: RunMetrics) -> None:
    metrics.evaluation(EVALUATION)
    written = readings(metrics)
    metrics.evaluation(json.loads(json.dumps(EVALUATION)))
    assert readings(metrics) == pytest.approx(written, nan_ok=True)


def test_layers_and_problems_beyond_the_limit_are_one_series(metrics: RunMetrics) -> None:
    layers = {f"relu{number}": 10 for number in range(40)}
    metrics.evaluation({**EVALUATION, "maps": layers, "dead_maps": dict.fromkeys(layers, 5)})
    samples = families(metrics)[f"{PREFIX}dead_maps_ratio"].samples
    (most,) = {each.most for each in DEFINITIONS if each.name == "dead_maps_ratio"}
    assert len(samples) == most + 1
    assert value(metrics, "dead_maps_ratio", layer=OTHER) == 0.5
    metrics.learning("another", True)
    assert value(metrics, "not_learning", problem=OTHER) == 1


@pytest.mark.parametrize(
    "network",
    [
        FeaturesNetwork(pooling="strided", width=12),
        Generator(128, 128, n_bottleneck=8, width=4),
    ],
    ids=["features", "inpainting"],
)
def test_each_layer_of_the_deepest_networks_has_a_series_of_its_own(network: nn.Module) -> None:
    (most,) = {each.most for each in DEFINITIONS if each.name == "dead_maps_ratio"}
    assert 1 < sum(isinstance(layer, nn.ReLU | nn.LeakyReLU) for layer in network.modules()) <= most


def test_only_rank_0_has_them_so_that_no_other_rank_hides_what_it_finds() -> None:
    other = RunMetrics("run", 1, 2, "node")
    other.evaluation(EVALUATION)
    other.learning("baseline", True)
    assert not families(other).keys() & {f"{PREFIX}{each.name}" for each in DEFINITIONS if each.only_on_first_rank}


def test_the_endpoint_serves_them(metrics: RunMetrics) -> None:
    metrics.evaluation(EVALUATION)
    metrics.learning("constant_output", True)
    with (
        MetricsServer(metrics.registry, MonitoringConfig(port=0)) as server,
        urllib.request.urlopen(f"http://{server.target}/metrics", timeout=60) as answer,
    ):
        lines = answer.read().decode().splitlines()
    of_rank_0 = 'node="node-7",rank="0",run="runs/first"'
    for line in (
        'context_encoder_held_back_loss{node="node-7",of="visible_mean",rank="0",run="runs/first"} 0.4',
        f"context_encoder_held_back_gain_ratio{{{of_rank_0}}} 0.1",
        f'context_encoder_dead_maps_ratio{{layer="relu5",{of_rank_0}}} 0.25',
        f"context_encoder_evaluation_step{{{of_rank_0}}} 100.0",
        'context_encoder_not_learning{node="node-7",problem="constant_output",rank="0",run="runs/first"} 1.0',
        'context_encoder_not_learning{node="node-7",problem="baseline",rank="0",run="runs/first"} 0.0',
    ):
        assert line in lines
