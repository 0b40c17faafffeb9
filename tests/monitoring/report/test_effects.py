"""Settings that have no effect in a run: what the report leaves out of its list is right for every recipe, and no key is misspelt."""

from __future__ import annotations

import re

import pytest

from monitoring.report.disclosure import flattened
from monitoring.report.effects import RULES, without_effect
from pipeline import recipes
from pipeline.config import parse, to_mapping


def settings(*arguments: str) -> dict[str, str]:
    return dict(flattened(to_mapping(parse(recipes.SETTINGS, ["--data.shards", "x", *arguments]))))


@pytest.mark.parametrize(
    ("arguments", "idle", "used"),
    [
        (["--recipe", "autoencoder"], {"method.mask.kind", "method.mask.max_fraction"}, {"method.norm"}),
        (["--recipe", "features"], {"method.discriminator_optimiser.kind", "method.batch_norm_group"}, {"method.mask.min_fraction"}),
        (
            ["--method.adversarial_weight", "0.1"],
            {"method.optimiser.momentum"},
            {"method.discriminator_optimiser.kind", "method.batch_norm_group"},
        ),
        (
            ["--recipe", "inpainting"],
            {"method.mask.min_fraction", "method.weigh_context"},
            {"method.mask.overlap", "method.overlap_weight", "method.discriminator_optimiser.betas", "method.conditional_discriminator"},
        ),
        (
            ["--recipe", "inpainting", "--method.mask.overlap", "0", "--method.adversarial_weight", "0"],
            {"method.overlap_weight", "method.conditional_discriminator"},
            {"method.mask.overlap"},
        ),
        (
            ["--recipe", "inpainting", "--method.mask.kind", "region", "--method.mask.overlap", "0"],
            {"method.overlap_weight", "method.mask.noise_fractions"},
            {"method.weigh_context", "method.mask.shapes"},
        ),
        (
            ["--recipe", "inpainting", "--method.mask.kind", "noise_pattern", "--method.mask.overlap", "0"],
            {"method.overlap_weight", "method.mask.overlap", "method.mask.max_fraction", "method.mask.shapes", "method.mask.mean_fraction"},
            {"method.mask.noise_fractions", "method.mask.one_per_batch"},
        ),
        (["--method.optimiser.kind", "sgd"], {"method.optimiser.betas", "method.optimiser.epsilon"}, {"method.optimiser.momentum"}),
        (["--schedule.kind", "cosine"], {"schedule.step_every", "schedule.step_factor"}, {"schedule.final_factor"}),
        (["--schedule.kind", "step"], {"schedule.final_factor"}, {"schedule.step_every", "schedule.step_factor"}),
        (["--monitoring.enabled", "False"], {"monitoring.port"}, {"monitoring.report", "monitoring.enabled", "watchdog.grace_seconds"}),
        (["--watchdog.enabled", "False"], {"watchdog.grace_seconds"}, {"watchdog.starving_share", "monitoring.port"}),
    ],
)
def test_settings_without_effect_are_known_and_no_others(arguments: list[str], idle: set[str], used: set[str]) -> None:
    found = without_effect(settings(*arguments))
    assert idle <= found
    assert not used & found


def test_every_rule_names_settings_that_there_are() -> None:
    known = {key for recipe in recipes.SETTINGS for key in settings("--recipe", recipe)}
    for values, pattern in RULES:
        assert values.keys() <= known
        assert any(re.fullmatch(pattern, key) for key in known), pattern


def test_a_setting_of_another_version_is_left_in_the_list() -> None:
    assert without_effect({"method.mask.kind": "star", "method.mask.overlap": "1"}) == set()
