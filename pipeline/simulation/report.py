"""A prediction for people (one table and a sentence of advice) and for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.simulation.prediction import FIRST, LATER, NO_CACHE, Pace, Prediction
from pipeline.simulation.probe import Measurement
from pipeline.simulation.settings import option
from pipeline.stream.read.samples import INDEX_BUDGET
from shards.console import megabytes, printable
from shards.counting import counted

_FEW_SHARDS, _COSTLY = 16, 0.1
_NOT_MODELLED = (
    "data.tail: pad (the end of an epoch is taken to be left out, as by drop), evaluation.held_back (held-back samples, up to a tenth of a "
    "small data set, are taken to be trained on), data.sources (one data set is read)"
)


def as_text(found: Prediction, measured: Measurement | None = None, kept: Sequence[str] = ()) -> str:
    """The prediction as text for people; `kept` names the figures that were given and therefore not taken from the measurement."""
    setup, manifest = found.setup, found.subject.manifest
    lines = [
        found.subject.name,
        f"  {counted(manifest.total_samples, 'sample')} in {counted(len(manifest.records), 'shard')}, {megabytes(manifest.total_bytes)}; "
        f"{counted(found.batches, 'batch')} of {setup.global_batch:,} an epoch",
        f"  {counted(setup.nodes, 'node')} x {counted(setup.ranks_per_node, 'rank')}; "
        f"the figures are of the node that has most to read: {found.node_lanes} of "
        f"{counted(found.lanes, 'lane')}, {counted(found.node_samples, 'sample')} a batch",
        f"  store: {_limits(found)}",
        *_measured(measured, kept),
        "",
        *_table(found),
        "",
        f"  shards a node needs     {found.shards_touched:,} an epoch",
        f"  working set             {_spread(found)} (shards of a block of its lanes and of the next: least, mean, most)",
        f"  cache needed            {megabytes(found.cache_needed)}; {_given(found)}",
        f"  first batch             {_first_batch(found)}",
        *_quality(found),
        *_preemption(found),
        "",
        *[f"  advice: {sentence}" for sentence in advice(found)],
        f"  exact: {_exact(found)}",
        f"  estimated: {_estimated(found)}",
        f"  not modelled: {_not_modelled(found)}",
    ]
    return "\n".join(printable(line) for line in lines)


def _limits(found: Prediction) -> str:
    setup = found.setup
    if found.subject.local:
        manifest = found.subject.manifest
        samples, volume = manifest.total_samples, manifest.total_bytes * found.subject.picture_fraction
        return (
            "none. The tars lie on this machine and are read in place: no downloads, no cache, no limits of a store. For the same data "
            f"set in a bucket give, instead of the folder, --samples {samples} --shard-samples {-(-samples // len(manifest.records))} "
            f"--sample-bytes {max(1, round(volume / samples))}. {_rates(found)}"
        )
    parts = [f"{setup.bandwidth:,.4g} MB/s a node"]
    parts += [f"{setup.store_bandwidth:,.4g} MB/s in all"] if setup.store_bandwidth else []
    parts += [f"{setup.connection_bandwidth:,.4g} MB/s a request"] if setup.connection_bandwidth else []
    parts.append(f"{setup.latency:.4g} ms a request, {counted(setup.connections, 'range')} at a time a rank")
    parts += [f"{setup.requests_per_second:,.6g} requests/s in all"] if setup.requests_per_second else []
    return ", ".join(parts) + f". {_rates(found)}"


def _rates(found: Prediction) -> str:
    setup = found.setup
    decoding = f"it decodes {setup.decode_rate:,.6g}/s" if setup.decode_rate else "decoding is no limit"
    return f"A rank trains on {setup.images_per_second:,.6g} images/s, {decoding}"


def _measured(measured: Measurement | None, kept: Sequence[str]) -> list[str]:
    if measured is None:
        return []
    over = [f"  given, so not taken from the measurement: {', '.join(map(option, kept))}"] if kept else []
    again = f", {measured.retries} repeated" if measured.retries else ""
    return [
        f"  measured: latency {measured.latency:.1f} ms, 95th percentile {measured.latency_p95:.1f} ms "
        f"({counted(measured.reads, 'read')}); "
        f"{measured.bandwidth:,.0f} MB/s by {counted(measured.threads, 'request')} at a time, "
        f"{measured.connection_bandwidth:,.0f} MB/s by one ({megabytes(measured.bytes)} read{again})",
        *over,
    ]


def _table(found: Prediction) -> list[str]:
    rows: list[tuple[str, list[str]]] = [("a node, an epoch", list(found.paces))]

    def add(name: str, cells: list[str]) -> None:
        rows.append((name, cells))

    paces = list(found.paces.values())
    add("bytes read", [megabytes(round(pace.traffic.bytes)) for pace in paces])
    add("requests", [_count(pace.traffic.requests) for pace in paces])
    add("  whole shards", [_count(pace.traffic.downloads) for pace in paces])
    add("    of them again", [_count(pace.traffic.again) for pace in paces])
    add("  ranges", [_count(pace.traffic.ranges) for pace in paces])
    add("  indexes", [_count(pace.traffic.indexes) for pace in paces])
    add("samples read by ranges", [_count(pace.traffic.ranged) for pace in paces])
    add("needed: MB/s a node", [f"{pace.bytes_per_second / 1e6:,.1f}" for pace in paces])
    add("needed: requests/s in all", [f"{pace.requests_per_second:,.1f}" for pace in paces])
    add("step", [_seconds(pace.step) for pace in paces])
    add("GPUs wait", [f"{100 * pace.stall:.1f} %" for pace in paces])
    add("what binds", [pace.bound for pace in paces])
    widths = [max(14, *(len(cells[column]) for _, cells in rows)) for column in range(len(paces))]
    return [f"  {name:<26}" + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) for name, cells in rows]


def _given(found: Prediction) -> str:
    given = found.setup.cache_gb * 1e9
    if found.subject.local:
        return "the shards are read in place, --cache-gb is not used"
    if not found.cached:
        return "none is given: all samples are read by ranges"
    if given >= found.cache_needed:
        return f"{megabytes(round(given))} are enough"
    ranged = found.now.traffic.ranged / max(found.now.traffic.samples, 1)
    return f"{megabytes(round(given))} are NOT enough: {100 * ranged:.0f} % of the samples are read by ranges"


def _first_batch(found: Prediction) -> str:
    first = found.first_batch
    if found.subject.local:
        return f"{first.ranged:.1f} s for decoding, from {counted(first.shards, 'shard')}"
    return (
        f"{first.ranged:.1f} s by ranges, from {counted(first.shards, 'shard')}; {first.whole_shards:.1f} s if it waited for whole shards"
    )


def _quality(found: Prediction) -> list[str]:
    shuffle = found.quality
    least, mean, most = shuffle.shards_per_batch
    spread = f"{mean:,.1f} shards" + (f" ({least:,.0f} to {most:,.0f})" if shuffle.batches else "")
    times = f", {shuffle.meeting / shuffle.perfect_meeting:,.3g} times as often" if shuffle.perfect_meeting else ""
    return [
        f"  shuffle                 a batch draws from {spread}; a perfect shuffle's from {shuffle.perfect_shards_per_batch:,.1f}",
        f"                          two samples of a shard meet in a batch with probability {shuffle.meeting:.3g}; "
        f"{shuffle.perfect_meeting:.3g} when shuffled perfectly{times}",
        f"                          shards are permuted, then samples move {shuffle.moved:,.0f} places in their lane on average; "
        f"{shuffle.perfect_moved:,.0f} when shuffled perfectly",
    ]


def _preemption(found: Prediction) -> list[str]:
    cost = found.preemption
    if cost is None:
        return []
    every = f"a kill every {found.setup.preemption_minutes:g} min"
    if cost.throughput >= 1:
        return [f"  preemption              {every}: NO progress, no next checkpoint is reached in between"]
    return [
        f"  preemption              {every}: {cost.lost_steps:,.0f} steps lost, {_seconds(cost.seconds)} in all, "
        f"{100 * cost.throughput:.1f} % of throughput; {megabytes(round(cost.bytes))} a node read again, "
        f"{100 * cost.traffic:.1f} % of what it reads"
    ]


def advice(found: Prediction) -> list[str]:
    """Advice for the most urgent problems, in at most two sentences."""
    setup, pace = found.setup, found.now
    enough = max(1, math.ceil(found.cache_needed * 1.1 / 1e9)) if found.cache_needed > 5e8 else math.ceil(found.cache_needed * 11e-8) / 100
    said: list[str] = []
    if found.preemption is not None and found.preemption.throughput >= 1:
        said.append("the run never gets from one checkpoint to the next: lower --checkpoint-steps.")
    if found.cached and setup.cache_gb * 1e9 < found.cache_needed:
        smaller = ", or lower --shuffle-block or --lanes" if enough > 1000 else ""
        said.append(f"raise --cache-gb to {enough:g}, so that the working set fits with a tenth to spare{smaller}.")
    if found.walk.index_need > INDEX_BUDGET:
        said.append(
            f"a rank uses indexes of {megabytes(found.walk.index_need)} at once, keeps {megabytes(INDEX_BUDGET)}, and reads them again "
            "every batch: build smaller shards, or spread the lanes over more ranks."
        )
    if pace.stall > 0.005 and not (said and found.cached and "cache-gb" in said[-1]):
        said.append(_remedy(found, pace, enough))
    if found.preemption is not None and _COSTLY < found.preemption.throughput < 1:
        repeated = found.preemption.lost_steps * pace.step / found.preemption.seconds
        what = "lower --checkpoint-steps" if repeated > 0.5 else "make the restart faster (--restart-seconds)"
        said.append(f"kills cost {100 * found.preemption.throughput:.0f} % of throughput: {what}.")
    if found.quality.shards_per_batch[1] < min(_FEW_SHARDS, found.quality.perfect_shards_per_batch / 2):
        said.append(f"a batch draws from {found.quality.shards_per_batch[1]:.1f} shards only: raise --lanes or --shuffle-block.")
    bare = found.paces.get(NO_CACHE, pace)
    if not said and found.cached and bare.stall < 0.005 and pace.traffic.bytes > bare.traffic.bytes * 1.2:
        said.append("the store is fast enough to go without a cache, which reads fewer bytes: --cache-gb 0.")
    return said[:2] or [_nothing(found)]


def _nothing(found: Prediction) -> str:
    """The advice where there is nothing to change, with the columns of the table in which the GPUs wait all the same."""
    waits = {name: f"{100 * pace.stall:.1f} %" for name, pace in found.paces.items() if pace.stall >= 0.0005}
    now = next(name for name, pace in found.paces.items() if pace is found.now)
    said = "nothing to change: the GPUs " + (f"hardly wait for data ({waits[now]})" if now in waits else "don't wait for data")
    if FIRST in waits and now != FIRST:
        said += f" once the first epoch is over, in which they wait {waits[FIRST]} of the time while the cache fills"
    if NO_CACHE in waits and now != NO_CACHE:
        said += f"; without the cache they would wait {waits[NO_CACHE]}"
    return f"{said}."


def _remedy(found: Prediction, pace: Pace, enough: float) -> str:
    bound, uncached = pace.bound, not found.cached
    waits = f"the GPUs wait {100 * pace.stall:.0f} % of the time for {bound}"
    if bound in {"the latency of requests", "the store's limit of requests"}:
        return f"{waits}: use the cache, --cache-gb {enough:g}." if uncached else f"{waits}: build larger shards, or raise --connections."
    if bound == "decoding":
        return f"{waits}: give a rank more cores, or store smaller pictures (python -m shards build --resize)."
    if bound == "two downloads at a time a rank":
        return f"{waits}: start more ranks on a node, or build larger shards."
    needed = pace.bytes_per_second / 1e6 * (found.setup.nodes if "store" in bound else 1)
    return f"{waits}: it would take {needed:,.0f} MB/s; store smaller pictures, or let the cache hold what a node reads in an epoch."


def _exact(found: Prediction) -> str:
    parts = ["lanes, shards a node needs"]
    if found.walk.exact and not found.subject.local:
        parts.append(
            f"whole shards, and samples read by ranges (the cache replayed block by block over {counted(len(found.walk.epochs), 'epoch')})"
        )
    if found.quality.exact:
        parts.append("the shuffle of the first epoch (all its batches counted)")
    return ", ".join(parts)


def _estimated(found: Prediction) -> str:
    parts = [
        "how many neighbours a range joins",
        f"bytes of pictures ({100 * found.subject.picture_fraction:.1f} % of a shard; {found.subject.picture_source})",
    ]
    if found.cached:
        parts.append("samples read before their shard arrives, at the start and after a kill")
    if not found.walk.exact:
        parts.append(
            f"bytes and requests (from {counted(len(found.walk.working_sets), 'block')} of the first epoch; "
            "later epochs find nothing in the cache)"
        )
    if found.paces.get(LATER) and found.setup.epochs > len(found.walk.epochs):
        parts.append(f"epochs after the first {len(found.walk.epochs)}: as the last of these")
    if found.subject.local:
        parts = []
    if not found.quality.exact:
        basis = counted(found.quality.batches, "batch") if found.quality.batches else "the expectation over all shuffles of a block"
        parts.append(f"the shuffle (from {basis})")
    return "; ".join(["all times and rates", *parts])


def _not_modelled(found: Prediction) -> str:
    return _NOT_MODELLED + (", the disk that the shards lie on" if found.subject.local else "")


def _spread(found: Prediction) -> str:
    sets = found.walk.working_sets
    return " / ".join(megabytes(round(float(value))) for value in (min(sets), np.mean(sets), max(sets)))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"


def as_mapping(found: Prediction, measured: Measurement | None = None, kept: Sequence[str] = ()) -> dict[str, Any]:
    """The prediction as plain numbers for programs: bytes, seconds, samples, and fractions from 0 to 1. `kept` is that of `as_text`."""
    sets = found.walk.working_sets

    def of(pace: Pace) -> dict[str, Any]:
        own = {"bytes": pace.traffic.bytes, "requests": pace.traffic.requests, "step_seconds": pace.step}
        rates = {"bytes_per_second_needed": pace.bytes_per_second, "requests_per_second_needed": pace.requests_per_second}
        return {**vars(pace.traffic), **own, "seconds": pace.seconds, "bound": pace.bound, "stall": pace.stall, **rates}

    manifest = found.subject.manifest
    return {
        "data_set": {
            "name": found.subject.name,
            "samples": manifest.total_samples,
            "shards": len(manifest.records),
            "bytes": manifest.total_bytes,
            "picture_share": found.subject.picture_fraction,
            "read_in_place": found.subject.local,
        },
        "setup": dataclasses.asdict(found.setup),
        "measured": None if measured is None else dataclasses.asdict(measured),
        "given_not_measured": list(kept),
        "order": {"lanes": found.lanes, "lane_length": found.lane_length, "batches": found.batches},
        "node": {"lanes": found.node_lanes, "samples_a_batch": found.node_samples},
        "epochs": {name: of(pace) for name, pace in found.paces.items()},
        "shards_touched": found.shards_touched,
        "working_set": {"least": min(sets), "mean": float(np.mean(sets)), "most": max(sets), "moments": len(sets)},
        "cache_needed": found.cache_needed,
        "cache_enough": found.subject.local or (found.cached and found.setup.cache_gb * 1e9 >= found.cache_needed),
        "index_working_set": found.walk.index_need,
        "first_batch": dataclasses.asdict(found.first_batch),
        "shuffle": dataclasses.asdict(found.quality),
        "preemption": None if found.preemption is None else dataclasses.asdict(found.preemption),
        "exact_traffic": found.walk.exact,
        "advice": advice(found),
        "exact": _exact(found),
        "estimated": _estimated(found),
        "not_modelled": _not_modelled(found),
    }
