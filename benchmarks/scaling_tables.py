"""The tables of benchmarks/scaling.py, as Markdown."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.scaling_model import (
    Cluster,
    Turn,
    Work,
    cache_hits,
    sent_bytes,
    step_seconds,
    strong_efficiency,
    weak_efficiency,
    zero_bytes,
)

if TYPE_CHECKING:
    from benchmarks.scaling import Measured

_SHARD_BYTES = 256e6  # of a shard whose data set is only assumed
_LANES = 64  # data.lanes: contiguous parts of an epoch, which nodes divide


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*names: str) -> tuple[str, str]:
    return _line(*names), _line(*["---"] * len(names))


VOLUMES = _head(
    "recipe", "mode", "collectives a step", "gradients MB", "sent MB a rank, counted", "by the formula", "at 8 ranks", "at 1024"
)
HERE = _head(
    "recipe", "ranks", "scaling", "pictures a rank", "one alone ms", "apart ms", "together ms", "efficiency: median (min to max)",
    "without communication", "model", "model without overlap",
)  # fmt: skip
EFFICIENCY = _head(
    "recipe", "GPUs", "pictures a GPU", "compute ms", "step ms", "weak efficiency", "without the processors' sum", "global batch",
    "strong efficiency", "without the processors' sum",
)  # fmt: skip
NEEDS = _head(
    "recipe", "GPUs", "img/s of the steps", "decoding cores a GPU", "img/s", "store GB/s, no cache", "cache has", "store GB/s, cache",
    "shards/s, cache", "run minutes", "GPU hours", "price",
)  # fmt: skip
DATA_SETS = {"features": 1_281_167, "inpainting": 14_900}
"""Pictures of the paper's data set, by recipe: ImageNet-1k and Paris StreetView."""


def constants(measured: Measured, work: Work) -> list[str]:
    """Returns the constants of one configuration, as lines of a list."""
    found = measured.largest
    lines = [
        f"- {measured.config.recipe}: {found['flops'] / 1e9:.2f} GFLOP a picture and step; {measured.picture_bytes / 1e3:.1f} kB a stored "
        f"picture; {measured.core_rate:.0f} pictures a second and decoding core; modelled GPU: {1000 * work.fixed:.2f} ms a step and "
        f"{1e6 * work.picture:.1f} us a picture"
    ]
    for turn in work.turns:
        buckets = ", ".join(f"{bucket.size / 1e6:.1f} MB at {bucket.ready:.0%}" for bucket in turn.buckets)
        lines.append(f"  - backward pass of {turn.backward:.0%} of the step, buckets complete: {buckets}")
    if "device_latency" in found:
        lines.append(
            f"  - links here: {1e6 * found['device_latency']:.0f} us a hop, {found['device_bandwidth'] / 1e9:.2f} GB/s between ranks; "
            f"{1e6 * found['host_latency']:.0f} us a hop between processors"
        )
    return lines


def volumes(measured: Measured) -> list[str]:
    """Returns a line for each mode: what each of two ranks sends in a step, counted and by the formula."""
    lines = []
    gradients = sum(size for turn in measured.counted["ddp"]["turns"] for size, _ in turn["buckets"])
    for stage, (mode, found) in enumerate(measured.counted.items()):
        calls = [(kind, size) for kind, size, _ in found["calls"]]
        calls += [("all_reduce", size) for turn in found["turns"] for size, _ in turn["buckets"]]
        counted = sum(sent_bytes(kind, size, 2) for kind, size in calls)
        numbers = Counter(kind.replace("_", "-") for kind, _ in calls)
        shown = ", ".join(f"{number} {kind}" for kind, number in numbers.items())
        formula = [zero_bytes(stage, gradients, ranks) / 1e6 for ranks in (2, 8, 1024)]
        cells = [f"{gradients / 1e6:.1f}", f"{counted / 1e6:.1f}", *(f"{each:.1f}" for each in formula)]
        lines.append(_line(measured.config.recipe, mode, shown, *cells))
    return lines


def here(recipe: str, run: dict[str, Any], work: Work, cluster: Cluster) -> list[str]:
    """Returns the lines of what was measured on some ranks, beside the model with the links that were measured.

    Args:
        recipe: name of the recipe.
        run: result of benchmarks/scaling_rank.py.
        work: the step of ranks that compute apart at the same time.
        cluster: this machine.
    """
    seconds, ranks, batch = run["seconds"], run["ranks"], run["batch"]
    slow = replace(work, turns=tuple(Turn(t.backward, tuple(replace(b, ready=1.0) for b in t.buckets)) for t in work.turns))
    lines = []
    for kind, pictures in {"weak": batch, "strong": batch // ranks}.items():
        if kind not in seconds:
            continue
        parts = ranks if kind == "strong" else 1
        found = [one / (parts * together) for one, together in zip(seconds["one"], seconds[kind], strict=True)]
        one = median(seconds["one"])
        lines.append(
            _line(
                recipe,
                str(ranks),
                kind,
                str(pictures),
                *(f"{1000 * median(seconds[name]):.0f}" for name in ("one", "apart", kind)),
                f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})",
                f"{one / median(seconds['apart']):.2f}",
                *(f"{one / (parts * step_seconds(each, pictures, ranks, cluster)):.2f}" for each in (work, slow)),
            )
        )
    return lines


def efficiency(measured: Measured, work: Work, cluster: Cluster, gpus: Sequence[int]) -> list[str]:
    """Returns the lines of the modelled efficiency at the published sizes."""
    batch = measured.config.training.global_batch
    free = replace(work, host_sums=0)
    lines = []
    for ranks in gpus:
        weak = [weak_efficiency(each, batch, ranks, cluster) for each in (work, free)]
        strong = [strong_efficiency(each, batch, ranks, cluster, measured.unit) for each in (work, free)]
        most = f"at most {batch // measured.unit} ranks"
        lines.append(
            _line(
                measured.config.recipe,
                str(ranks),
                str(batch),
                f"{1000 * work.compute(batch):.2f}",
                f"{1000 * step_seconds(work, batch, ranks, cluster):.2f}",
                *(f"{each:.2f}" for each in weak),
                str(batch),
                *(most if each is None else f"{each:.2f}" for each in strong),
            )
        )
    return lines


def needs(measured: Measured, work: Work, cluster: Cluster, options: argparse.Namespace) -> list[str]:
    """Returns the lines of what a run of the published number of pictures needs, with the published batch on each GPU."""
    training, size = measured.config.training, measured.picture_bytes
    pictures, data_set = training.steps * training.global_batch, options.data_set or DATA_SETS.get(measured.config.recipe, 1_281_167)
    shards = max(1, round(data_set * size / _SHARD_BYTES))
    lines = []
    for ranks in options.gpus:
        nodes = math.ceil(ranks / options.gpus_per_node)
        steps = ranks * training.global_batch / step_seconds(work, training.global_batch, ranks, cluster)
        rate = min(steps, ranks * options.cores_per_gpu * measured.core_rate)
        hits = cache_hits(shards, int(options.cache_gb * 1e9 / _SHARD_BYTES), nodes, max(1, round(pictures / data_set)))
        copies = max(1.0, nodes / math.gcd(_LANES, training.global_batch))  # nodes that share a lane download its shards each
        hours = pictures / rate / 3600
        cells = [f"{steps:,.0f}", f"{steps / ranks / measured.core_rate:.1f}", f"{rate:,.0f}", f"{rate * size / 1e9:.2f}", f"{hits:.0%}"]
        cells += [f"{rate * size * copies * (1 - hits) / 1e9:.2f}", f"{rate * size * copies * (1 - hits) / _SHARD_BYTES:.1f}"]
        cells += [f"{60 * hours:.2f}", f"{hours * ranks:.2f}", f"{hours * ranks * options.price:.2f}"]
        lines.append(_line(measured.config.recipe, str(ranks), *cells))
    return lines
