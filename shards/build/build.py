"""Builds a data set of shards from the pictures of a source: plan, tasks, manifest.

Shards are made in parallel, and each is committed with a record. After any interruption the same command makes the missing shards, and the
result is the same to the byte, for any number of processes and interruptions. The manifest is written last: without it there is no data
set. Pictures that can't be read, and no others, are left out, counted and listed.
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
from shards.counting import counted
from shards.dataset import manifest as manifests
from shards.dataset.manifest import Manifest
from shards.dataset.workplace import FOLDER, REJECTED, read_rejected, scratch_folder
from shards.errors import ShardError
from shards.store import Options, Store
from shards.urls import redacted

SHOWN_REJECTIONS = 10


@dataclass(frozen=True)
class BuildRequest:
    """A data set to build, and how.

    Attributes:
        source: URL of the source of pictures, such as a folder or a tar.
        destination: URL of the data set.
        settings: settings that decide the bytes of the data set.
        include, labels, label_pattern, split: as in `sources.open_source`.
        source_options, destination_options: fsspec options of the stores.
        workers: number of processes; 0 does the work in the calling process.
        overwrite: replace what another build left in the destination.
        quiet: show no progress on stderr.
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
    split: str | None = None


@dataclass(frozen=True)
class BuildResult:
    """A finished build.

    Attributes:
        manifest: manifest of the data set.
        listing: pictures of the source.
        already: the data set was complete before this build.
        rejected: (name, reason) of the pictures that were left out, sorted by name.
    """

    manifest: Manifest
    listing: Listing
    already: bool
    rejected: Sequence[tuple[str, str]]


class BuildFailed(ShardError):
    """Some shards were not made; the same command makes them."""


def build(request: BuildRequest) -> BuildResult:
    """Builds, or finishes building, a data set.

    Raises:
        SourceError: the source is unusable, or a picture changed while the build ran.
        StoreError: a store can't be read or written.
        ShardError: the destination holds something else, or every picture was rejected.
        BuildFailed: shards are missing; the message names them.
    """
    store = Store(request.destination, request.destination_options)
    destination.refuse_overlap(Store(request.source, request.source_options), store)
    store.size(manifests.NAME)  # wrong credentials fail here, before a long listing
    listing = open_source(request.source, request.source_options, request.include, request.labels, request.label_pattern, request.split)
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
    """Runs the tasks that have no record yet."""
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
            f"{there} of {counted(len(plan), 'shard is', 'shards are')} there; not made:\n{named}\n"
            "Run the same command to make the missing shards"
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
    """Writes the list of rejected pictures, then the manifest, then removes the records of the build."""
    shards = tuple(record.shard for record in records if record.shard is not None)
    if not shards:
        store.delete(FOLDER)
        named = "\n".join(f"  {name}: {reason}" for name, reason in rejected[:SHOWN_REJECTIONS])
        raise ShardError(f"none of {counted(len(listing), 'picture')} could be stored; nothing was built. The first are\n{named}")
    if rejected:
        lines = (json.dumps({"source": name, "reason": reason}) + "\n" for name, reason in rejected)
        store.write(REJECTED, "".join(lines).encode())
    manifest = Manifest(shards, store.url, listing.classes, settings, len(rejected))
    store.write(manifests.NAME, manifest.encode())
    store.delete(FOLDER)
    return manifest


def _shown_settings(request: BuildRequest, plan: Plan) -> dict[str, Any]:
    """Returns the settings for the manifest, without the options of the stores, because those hold credentials."""
    settings = asdict(request.settings)
    picture = settings.pop("picture")
    return {
        "plan": plan.digest,
        "source": redacted(request.source),
        "pictures": len(plan.listing),
        "include": list(request.include),
        **({"split": request.split} if request.split is not None else {}),
        "labels": request.label_pattern or (request.labels if plan.listing.classes else "none"),
        **settings,
        **picture,
        "encoder": encoder() if picture["resize"] is not None else None,
    }
