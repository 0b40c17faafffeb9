"""Settings that have no effect beside the values of others: the masks of a recipe without any, the momentum of adam."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NONE = ("0", "0.0")
RULES: Sequence[tuple[Mapping[str, Sequence[str]], str]] = (
    ({"recipe": ("autoencoder",)}, r"method\.mask\..*"),
    ({"method.mask.kind": ("central",)}, r"method\.mask\.min_fraction"),
    ({"method.mask.kind": ("region", "block", "noise_pattern")}, r"method\.mask\.overlap"),
    ({"method.mask.kind": ("region", "block", "central")}, r"method\.mask\.noise_fractions"),
    ({"method.mask.kind": ("block", "central", "noise_pattern")}, r"method\.mask\.(mean_fraction|shapes)"),
    ({"method.mask.kind": ("noise_pattern",)}, r"method\.mask\.(min|max)_fraction"),
    ({"method.mask.kind": ("central",)}, r"method\.weigh_context"),
    ({"method.mask.kind": ("central",), "method.mask.overlap": _NONE}, r"method\.overlap_weight"),
    ({"method.mask.kind": ("region", "block", "noise_pattern"), "method.weigh_context": ("false",)}, r"method\.overlap_weight"),
    ({"method.adversarial_weight": _NONE}, r"method\.(discriminator_optimiser\..*|conditional_discriminator)"),
    ({"method.adversarial_weight": _NONE, "method.batch_norm": ("false",)}, r"method\.batch_norm_group"),
    ({"method.optimiser.kind": ("adam",)}, r"method\.optimiser\.momentum"),
    ({"method.optimiser.kind": ("sgd",)}, r"method\.optimiser\.(betas|epsilon)"),
    ({"method.discriminator_optimiser.kind": ("adam",)}, r"method\.discriminator_optimiser\.momentum"),
    ({"method.discriminator_optimiser.kind": ("sgd",)}, r"method\.discriminator_optimiser\.(betas|epsilon)"),
    ({"schedule.kind": ("constant", "step")}, r"schedule\.final_factor"),
    ({"schedule.kind": ("constant", "cosine")}, r"schedule\.step_(every|factor)"),
    ({"watchdog.enabled": ("false",)}, r"watchdog\.(startup_minutes|stall_minutes|checkpoint_minutes|grace_seconds)"),
    ({"monitoring.enabled": ("false",)}, r"monitoring\.(?!enabled|report|run_name).*"),
)
"""Values of some settings, and a pattern of the settings that have no effect with all of them."""


def without_effect(settings: Mapping[str, str]) -> set[str]:
    """Names the settings of a run that have no effect.

    Args:
        settings: texts of the settings by their dotted names.
    """
    patterns = [pattern for values, pattern in RULES if all(settings.get(key) in allowed for key, allowed in values.items())]
    return {key for key in settings if any(re.fullmatch(pattern, key) for pattern in patterns)}
