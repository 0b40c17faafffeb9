"""Builds a data set of shards from the pictures of a source: plan, tasks, manifest.

Shards are made in parallel and each is committed with a record; whatever ends a build, the same command goes on with what is missing, and
the result is the same to the byte as if nothing had happened, for any number of processes. The manifest is written last: without it there
is no data set. Pictures that can't be read are left out, counted and listed; nothing else is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.build import destination
from shards.build.executor import Failure, Outcome, run_here, run_in_pool
from shards.build.picture import encoder
from shards.build.plan import Plan, PlanSettings, ShardTask
from shards.build.sources import LabelRule, Listing, open_source
from shards.build.task import Progress, TaskLocations, TaskRecord, run_task
from shards.console import ProgressReport
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.dataset.workplace import FOLDER, REJECTED, read_rejected, scratch_folder
from shards.errors import ShardError
from shards.store import Options, Store
from shards.urls import redacted

SHOWN_REJECTIONS = 10


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        source: URL of a folder, a tar or a tar of tars.
        destination: URL of the data set.
        settings: what decides its bytes.
        include, labels, label_pattern: as in `sources.open_source`.
        source_options, destination_options: fsspec options of the stores.
        workers: processes; 0 does the work in this one.
        overwrite: replace what another build left in the destination.
        quiet: no progress on stderr.
    """

    source: str
    destination: str
    settings: PlanSettings = field(default_factory=PlanSettings)
    include: Sequence[str] = ()
    labels: LabelRule = "folder"
    label_pattern: str | None = None
    source_options: Options = field(default_factory=dict)
    destination_options: Options = field(default_factory=dict)
    workers: int = 0
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class BuildResult:
    """What there is now. `already` says that it was there before; `rejected` are (name, reason), sorted by name."""

    manifest: Manifest
    listing: Listing
    already: bool
    rejected: Sequence[tuple[str, str]]


class BuildFailed(ShardError):
    """Some shards were not made. The same command goes on with them."""


def build(request: BuildRequest) -> BuildResult:
    """Builds, or finishes building, a data set.

    Raises:
        SourceError, StoreError: the pictures can't be had, or the destination not written.
        ShardError: the destination holds something else, or every picture was rejected.
        BuildFailed: shards are missing; the message names them.
    """
    store = Store(request.destination, request.destination_options)
    destination.refuse_overlap(Store(request.source, request.source_options), store)
    store.size(manifests.NAME)  # credentials that are wrong show before a long listing
    listing = open_source(request.source, request.source_options, request.include, request.labels, request.label_pattern)
    plan = Plan(listing, request.settings)
    shown = _shown_settings(request, plan)
    with scratch_folder(store) as scratch:
        if request.overwrite:
            destination.make_way(store, plan, shown)
        finished = destination.find_finished(store, shown)
        if finished is not None:
            rejected = read_rejected(store) if finished.rejected else []
            store.delete(FOLDER)
            return BuildResult(finished, listing, True, rejected)
        records = destination.find_records(store, plan, shown)
        locations = TaskLocations(listing.url, request.source_options, store.url, request.destination_options, scratch)
        records |= _run(plan, records, locations, request)
        ordered = [records[index] for index in range(len(plan))]
        rejected = sorted(pair for record in ordered for pair in record.rejected)
        manifest = _finish(store, listing, ordered, rejected, shown)
    return BuildResult(manifest, listing, False, rejected)


def _run(plan: Plan, before: Mapping[int, TaskRecord], locations: TaskLocations, request: BuildRequest) -> dict[int, TaskRecord]:
    """Does the tasks that have no record yet."""
    size = plan.settings.shard_size
    done = sum(min(size, len(plan.listing) - index * size) for index in before)
    tasks = (plan.task(index) for index in range(len(plan)) if index not in before)
    report = ProgressReport("pictures", len(plan.listing), done, request.quiet)
    job = functools.partial(_job, locations=locations)
    records: dict[int, TaskRecord] = {}
    failures: list[Failure] = []
    with closing(report), closing(_outcomes(tasks, job, request.workers, report.advance)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, TaskRecord):
                records[outcome.index] = outcome
                continue
            failures.append(outcome)
            if outcome.final:
                break
    if failures:
        named = "\n".join(f"  {failure.shard}: {failure.reason}" for failure in failures)
        there = len(before) + len(records)
        raise BuildFailed(
            f"{there} of {len(plan)} shards are there; not made:\n{named}\nRun the same command to go on with what is missing"
        )
    return records


def _job(task: ShardTask, progress: Progress, locations: TaskLocations) -> TaskRecord:
    return run_task(task, locations, progress)


def _outcomes(
    tasks: Iterator[ShardTask], job: Callable[[ShardTask, Progress], TaskRecord], workers: int, progress: Progress
) -> Generator[Outcome, None, None]:
    return run_in_pool(tasks, job, workers, progress) if workers else run_here(tasks, job, progress)


def _finish(
    store: Store, listing: Listing, records: Sequence[TaskRecord], rejected: Sequence[tuple[str, str]], settings: Mapping[str, Any]
) -> Manifest:
    """Writes the list of rejected pictures, then the manifest; then the traces of the build go."""
    shards = tuple(record.shard for record in records if record.shard is not None)
    if not shards:
        store.delete(FOLDER)
        named = "\n".join(f"  {name}: {reason}" for name, reason in rejected[:SHOWN_REJECTIONS])
        raise ShardError(f"none of the {len(listing)} pictures could be stored; nothing was built. The first are\n{named}")
    if rejected:
        lines = (json.dumps({"source": name, "reason": reason}) + "\n" for name, reason in rejected)
        store.write(REJECTED, "".join(lines).encode())
    manifest = Manifest(shards, store.url, listing.classes, settings, len(rejected))
    store.write(manifests.NAME, manifest.encode())
    store.delete(FOLDER)
    return manifest


def _shown_settings(request: BuildRequest, plan: Plan) -> dict[str, Any]:
    """What the manifest says about the build. No options of a store: they hold credentials."""
    settings = asdict(request.settings)
    picture = settings.pop("picture")
    return {
        "plan": plan.digest,
        "source": redacted(request.source),
        "pictures": len(plan.listing),
        "include": list(request.include),
        "labels": request.label_pattern or (request.labels if plan.listing.classes else "none"),
        **settings,
        **picture,
        "encoder": encoder() if picture["resize"] is not None else None,
    }
