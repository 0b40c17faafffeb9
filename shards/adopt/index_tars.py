"""Makes a data set of tars that another program wrote: reads each tar once, writes its index and a manifest, and changes no tar.

Each index is committed with a record, so that after any interruption the same command reads only the missing tars. Indexes go to their
final names when all are there, and the manifest is written last. A tar whose name, size and version are in an earlier manifest is not read
again, so a growing data set costs only what is new. Samples that can't be used are left out, counted and listed. Tars that can't be read
end in one error that names all of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, replace

from shards.adopt.class_names import Labels, find_labels
from shards.adopt.records import Done, begin, choose, clear, find_begun, find_finished, find_interrupted, install_all, refuse_foreign
from shards.adopt.remarks import advice, hidden_files, newer_rules, several_pictures
from shards.adopt.repeated import repeated_tars
from shards.adopt.splits import PLACES, SPLIT, places_in, refuse_mixed_keys, refuse_other_split, split_places, take_split
from shards.console import ProgressReport, megabytes
from shards.counting import counted
from shards.dataset import index as shard_index
from shards.dataset import manifest as manifests
from shards.dataset.index import SUFFIX, Remarks, Rules, ShardIndex
from shards.dataset.manifest import Manifest, ShardRecord, settings_of
from shards.dataset.workplace import FOLDER, REJECTED, scratch_folder
from shards.errors import ShardCorrupt, ShardError, SourceError, StoreError
from shards.layout import ALL, shown_left_out
from shards.store import Options, Store
from shards.tar.listing import TarListing, list_tars
from shards.tar.places import absolute
from shards.tar.reader import TarReader
from shards.tar.version import Tar, look_up
from shards.urls import join, redacted

_MOST_STORE_ERRORS = 10  # after so many errors of a store the rest would fail too
_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SHOWN = 10


@dataclass(frozen=True)
class IndexRequest:
    """Tars to index, and how.

    Attributes:
        urls: URLs of folders, globs, brace lists, single tars, or text files with one of these in each line.
        destination: URL of the folder for manifest and indexes; None puts them beside the tars.
        rules: rules by which samples become rows.
        strict: raise if samples can't be used, instead of leaving them out.
        options, destination_options: fsspec options of the stores.
        workers: number of tars that are read at once; 0 takes one per core (at most 8), or four per core (at most 32) for a store.
        quiet: show no progress on stderr.
        split: split whose tars to take, as in `splits.take_split`.
    """

    urls: Sequence[str]
    destination: str | None = None
    rules: Rules = field(default_factory=Rules)
    strict: bool = False
    options: Options = field(default_factory=dict)
    destination_options: Options = field(default_factory=dict)
    workers: int = 0
    quiet: bool = False
    split: str | None = None


@dataclass(frozen=True)
class IndexResult:
    """A finished run of `index`.

    Attributes:
        manifest: manifest of the data set.
        rejected: (key, tar, reason) of the first samples that were left out; `manifest.rejected` counts all.
        read: number of tars that were read by this run; the others were known.
        gone: number of tars of the previous manifest that are no longer named.
        compressed: number of compressed tars that were left out.
        notes: lines for people about what else was left out, found or chosen.
    """

    manifest: Manifest
    rejected: Sequence[tuple[str, str, str]]
    read: int
    gone: int
    compressed: int
    notes: Sequence[str] = ()


class _Stopped(Exception):
    """Raised in the threads when the run is interrupted."""


def index(request: IndexRequest) -> IndexResult:
    """Indexes tars; finishes an interrupted run, and adds new tars to a data set.

    Raises:
        SourceError: there are no tars, or one that was named is missing.
        StoreError: a store can't be read or written.
        ShardError: tars can't be read (all are named), the destination holds something else, or no sample can be used.
    """
    everything = list_tars(request.urls, request.options)
    listing, other_splits = take_split(everything, request.split)
    inner = next((tar.name for tar in listing.tars if tar.name.startswith(f"{FOLDER}/")), None)
    if inner is not None:
        raise SourceError(
            f"{redacted(join(listing.url, inner))}: lies in {FOLDER}, which is for unfinished work. Move it, or name the others: '*.tar'"
        )
    url = _destination(listing, request)
    store = Store(url, request.destination_options)
    with scratch_folder(store):
        sizes = dict(store.list())
        begun = find_begun(store, sizes)
        old, finished = find_finished(store, listing.url, request.rules)
        if old is not None and request.split is not None:
            refuse_other_split(old, request.split, {tar.name for tar in everything.tars} - {tar.name for tar in listing.tars})
        elif old is not None and old.settings.get(SPLIT) == ALL:
            request = replace(request, split=ALL)  # a set that grows was asked for once
        places = places_in(old) if old is not None else {}
        finished = {name: replace(one, splits=places.get(name, ())) for name, one in finished.items()}
        interrupted = find_interrupted(store, request.rules, sizes)
        done = choose(store, listing.tars, request.rules, sizes, (interrupted, finished), begun)
        listed_before = begun or bool(old and old.rejected)
        written = [tar.name + SUFFIX for tar in listing.tars if tar.name not in done or done[tar.name].new]
        refuse_foreign(store, sizes, listed_before, written)
        begin(store, request.rules, sizes, beside=url == listing.url)
        todo = [tar for tar in listing.tars if tar.name not in done]
        done.update(_run(store, listing, todo, request))
        ordered = [done[tar.name] for tar in listing.tars]
        if request.split is None:
            refuse_mixed_keys(listing, ordered)
        labels = find_labels(store, ordered, listing.url, request.options) if request.rules.labels else Labels()
        manifest = _finish(store, listing, ordered, request, listed_before, labels)
    names = {tar.name for tar in listing.tars}
    gone = sum(record.name not in names for record in old.records) if old else 0
    facts = (hidden_files(ordered), several_pictures(ordered), newer_rules(old, manifest))
    notes = (shown_left_out(listing.hidden), other_splits, *facts, labels.note)
    return IndexResult(manifest, _first(ordered), len(todo), gone, listing.compressed, tuple(note for note in notes if note))


def _destination(listing: TarListing, request: IndexRequest) -> str:
    """Returns the URL of the folder for manifest and indexes; the listing's own URL if both are one folder under two names."""
    if request.destination is None:
        return listing.url
    url = request.destination if "://" in request.destination else absolute(request.destination)
    ours, theirs = Store(url, request.destination_options), Store(listing.url, request.options)
    same = ours.root == theirs.root if ours.local is None else theirs.local is not None and ours.local.resolve() == theirs.local.resolve()
    return listing.url if same and type(ours.fs) is type(theirs.fs) else url


def read_tar(
    store: Store,
    tar: Tar,
    rules: Rules,
    reject: Callable[[str, str], None],
    passed: Callable[[int], None] | None = None,
    remarks: Remarks | None = None,
) -> tuple[ShardIndex, str]:
    """Reads the index of a tar in a store and the sha256 of the tar, which is empty where the rules ask for no digests.

    Raises:
        ShardCorrupt: as `shards.dataset.index.index_of`; or the tar is compressed, or was replaced while it was read.
        StoreError: the store can't be read.
    """
    shown = store.describe(tar.name)
    reader = TarReader(store, tar.name, tar.size, rules.digests, passed)
    if reader.read(8).startswith(_MAGICS):
        raise ShardCorrupt(
            f"{shown}: compressed, in spite of its name. Unpack it (gunzip, unzstd, ...), because samples are read by their offset"
        )
    reader.seek(0)
    found = shard_index.index_of(reader, shown, rules, reject, remarks)
    sha256 = reader.sha256()
    now = look_up(store, tar.name)
    if now != tar:
        raise ShardCorrupt(f"{shown}: replaced or removed while it was read. Run the same command again")
    return found, sha256


def _run(store: Store, listing: TarListing, todo: Sequence[Tar], request: IndexRequest) -> dict[str, Done]:
    """Indexes tars in threads, which is enough because waiting and hashing release the GIL."""
    tars = Store(listing.url, request.options)
    workers = request.workers or (min(os.cpu_count() or 1, 8) if tars.local else min(4 * (os.cpu_count() or 1), 32))
    report = ProgressReport("tars", len(listing.tars), len(listing.tars) - len(todo), request.quiet)
    lock, stopped = threading.Lock(), threading.Event()

    def passed(size: int) -> None:
        if stopped.is_set():
            raise _Stopped
        with lock:
            report.advance(0, size)

    job = functools.partial(_index_tar, store, tars, request.rules, passed)
    done: dict[str, Done] = {}
    problems: list[str] = []
    store_errors = 0
    pool = ThreadPoolExecutor(workers)
    with closing(report):
        try:
            for future in as_completed([pool.submit(job, tar) for tar in todo]):
                try:
                    result = future.result()
                    done[result.shard.name] = result
                    with lock:
                        report.advance(1, 0)
                except ShardError as error:
                    problems.append(str(error))
                    store_errors += isinstance(error, StoreError)
                    if store_errors >= _MOST_STORE_ERRORS:
                        problems.append("(stopped here, because the store keeps failing)")
                        break
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    if problems:
        named = "\n".join(f"  {problem}" for problem in sorted(problems))
        there = len(listing.tars) - len(todo) + len(done)
        raise ShardError(
            f"{there} of {counted(len(listing.tars), 'tar is', 'tars are')} indexed, "
            f"and no new manifest was written; not usable:\n{named}\n"
            "Replace or remove these tars and run the same command, which indexes the missing ones"
        )
    return done


def _index_tar(store: Store, tars: Store, rules: Rules, passed: Callable[[int], None], tar: Tar) -> Done:
    """Reads one tar and commits its index, then its record."""
    rejected: list[tuple[str, str]] = []
    remarks = Remarks()
    found, sha256 = read_tar(tars, tar, rules, lambda key, reason: rejected.append((key, reason)), passed, remarks)
    rows = found.encode()
    record = ShardRecord(tar.name, tar.size, sha256, len(found), hashlib.sha256(rows).hexdigest(), tar.version)
    hidden_names = tuple(sorted(remarks.hidden_names))
    splits = split_places(remarks.folders)
    done = Done(record, tuple(rejected), True, remarks.hidden, hidden_names, several=remarks.several, splits=splits)
    done.write(store, rules, rows)
    return done


def _first(done: Iterable[Done]) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for one in done:
        found += [(key, one.shard.name, reason) for key, reason in one.rejected[:_SHOWN]]
        if len(found) >= _SHOWN:
            break
    return found[:_SHOWN]


def _finish(
    store: Store, listing: TarListing, done: Sequence[Done], request: IndexRequest, listed_before: bool, labels: Labels
) -> Manifest:
    """Gives the indexes their final names, writes the list of rejected samples and the manifest, then removes the records of the run."""
    rejected = sum(len(one.rejected) for one in done)
    samples = sum(one.shard.count for one in done)
    if not samples:
        clear(store)  # another run has no use for the records; an existing data set is unchanged
    if rejected and (request.strict or not samples):
        named = "\n".join(f"  {name}: sample {key} {reason}" for key, name, reason in _first(done))
        what = "no sample can be used" if not samples else f"{counted(rejected, 'sample')} can't be used, which --strict makes an error"
        raise ShardError(f"{store.describe()}: {what}; no manifest was written. The first are\n{named}\n{advice(_first(done))}".rstrip())
    if not samples:
        hidden = f" ({hidden_files(done)})" if hidden_files(done) else ""
        raise ShardError(f"{redacted(listing.url)}: the {counted(len(done), 'tar holds', 'tars hold')} no samples{hidden}")
    settings = {
        manifests.INDEXED: [redacted(url) for url in request.urls],
        "digests": "read" if all(one.shard.sha256 for one in done) else "none",
        manifests.LABELLED: labels.samples,
        **({} if request.split is None else {SPLIT: request.split}),
        **({PLACES: places} if (places := {one.shard.name: list(one.splits) for one in done if one.splits}) else {}),
        **settings_of(request.rules),
    }
    manifest = Manifest(tuple(one.shard for one in done), store.url, labels.names, settings, rejected, listing.url)
    install_all(store, done)
    if rejected:
        with store.writing(REJECTED) as file:
            for one in done:
                for key, reason in one.rejected:
                    row = {"source": f"{one.shard.name}: {key}", "tar": one.shard.name, "key": key, "reason": reason}
                    file.write(json.dumps(row).encode() + b"\n")
    store.write(manifests.NAME, manifest.encode())
    if not rejected and listed_before:
        store.remove([REJECTED])
    clear(store)
    return manifest


def as_text(result: IndexResult) -> list[str]:
    """Returns the lines that a person sees: the data set, the samples that were left out, and the protection that is missing."""
    manifest, shown = result.manifest, redacted(result.manifest.url)
    known = len(manifest.records) - result.read
    lines = [
        redacted(manifest.shards_url) + (f"; manifest and indexes in {shown}" if manifest.url != manifest.shards_url else ""),
        f"  {counted(manifest.total_samples, 'sample')} in {counted(len(manifest.records), 'tar')}, {megabytes(manifest.total_bytes)}"
        f"; {counted(result.read, 'tar')} read now, {known:,} known before",
    ]
    if result.gone:
        lines.append(
            f"  {counted(result.gone, 'tar of the previous manifest is', 'tars of the previous manifest are')} not among the named ones: "
            "samples have other ids than before"
        )
    lines += [f"  {note}" for note in result.notes]
    if result.compressed:
        lines.append(f"  left out: {counted(result.compressed, 'compressed tar')} (unpack them to use them)")
    if manifest.rejected:
        lines.append(f"  rejected: {counted(manifest.rejected, 'sample')} that can't be used, all listed in {join(shown, REJECTED)}")
        lines += [f"    {name}: sample {key} {reason}" for key, name, reason in result.rejected]
        lines += [f"    {line}" for line in [advice(result.rejected)] if line]
    unread = sum(not record.sha256 for record in manifest.records)
    if unread:
        lines.append(
            f"  no digests of the samples in {counted(unread, 'tar')}: bytes that change in the store, the network or a cache are noticed "
            "only if a picture does not decode, which is rare; a tar that was replaced is noticed by its size and version"
        )
    unversioned = sum(not record.version for record in manifest.records)
    if unversioned:
        lines.append(
            f"  the store gives no time and no ETag of {counted(unversioned, 'tar')}: each run reads them again, "
            "because one that was replaced by another of the same length looks the same" + (", to training as well" if unread else "")
        )
    return [*lines, *repeated_tars(manifest.records)]
