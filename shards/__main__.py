"""`python -m shards`: build, index, verify and inspect data sets of WebDataset shards, and trace the shapes of masks."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence

from shards.build.picture import PictureRules
from shards.build.plan import PlanSettings
from shards.console import exit_code, megabytes, next_command, printable
from shards.counting import counted
from shards.errors import ShardError
from shards.layout import ALL, mixture, shown_left_out, wanted_kind
from shards.shapes import command as shapes
from shards.urls import join, parse_options, redacted

_EXAMPLES = """examples:
  a folder with one folder a class, or any folder of pictures:
    python -m shards build ~/pictures ~/shards
  ILSVRC2012 as it is distributed, into a bucket:
    python -m shards build ILSVRC2012_img_train.tar s3://bucket/imagenet-256
  another store than Amazon's (or set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY):
    python -m shards build ~/pictures s3://bucket/shards --storage endpoint_url=http://127.0.0.1:8333 --storage profile=mine
  Tiny ImageNet, whose class is the second folder:
    python -m shards build tiny-imagenet.tar shards --include 'train/*' --label-pattern '^train/([^/]+)/'
  existing WebDataset tars, which are only read:
    python -m shards index s3://bucket/train
    python -m shards index 's3://bucket/train/shard-{000000..001281}.tar' --to ~/indexes
  then:
    python -m shards verify ~/shards
    python -m shards inspect ~/shards
  the shapes of masks, traced from the objects of PASCAL VOC into one file (method.mask.shapes):
    python -m shards shapes VOCdevkit/VOC2012 s3://bucket/voc-shapes.safetensors
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 an error or an unsound data set, 2 a wrong command line, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m shards", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_build, _add_index, _add_verify, _add_inspect, _add_shapes, _add_simulate):
        add(commands)
    options = parser.parse_args(arguments)
    return exit_code(lambda: int(options.run(options)), options.after_interrupt)


def _command(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fsspec option of the store: endpoint_url=..., profile=..., anon=true; repeatable. AWS_* variables work as usual",
    )


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "build", "build a data set of shards; run it again to finish a build that was interrupted")
    settings, rules = PlanSettings(), PictureRules()
    parser.add_argument("source", metavar="SRC", help="a folder, an uncompressed tar or a tar of tars; a path or a URL")
    parser.add_argument("destination", metavar="DST", help="the folder of the data set; a path or a URL")
    parser.add_argument(
        "--resize",
        default=str(rules.resize),
        metavar="N|none",
        help="shorter side of stored pictures, never enlarged; none stores the bytes as they are",
    )
    parser.add_argument(
        "--quality", type=int, default=rules.quality, help="JPEG quality of pictures that are encoded again, with 4:2:0 chroma"
    )
    parser.add_argument("--shard-size", type=int, default=settings.shard_size, help="pictures per shard")
    parser.add_argument("--seed", type=int, default=settings.seed, help="seed of the random order of the pictures")
    parser.add_argument("--prefix", default=settings.prefix, help="shards are named PREFIX-000000.tar and so on")
    parser.add_argument(
        "--labels",
        choices=["folder", "none"],
        default="folder",
        help="folder: the first folder is the label, if all pictures lie in two or more",
    )
    parser.add_argument(
        "--label-pattern", metavar="REGEX", help="pattern with one group, searched in each name below SRC; the group is the label"
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="take only pictures whose name matches; repeatable; * crosses /"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split to take: train, val, test, ...; its folders are the classes; all mixes every split"
    )
    parser.add_argument("--max-pixels", type=int, default=rules.max_pixels, help="larger pictures are rejected before they are decoded")
    parser.add_argument("--max-bytes", type=int, default=rules.max_bytes, help="longer files are rejected before they are read")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes; 0 does the work in the main process")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set, or an unfinished build of another one, in DST")
    _add_storage(parser)
    parser.add_argument(
        "--source-storage", action="append", metavar="KEY=VALUE", help="as --storage, for SRC, if SRC is in another store than DST"
    )
    parser.set_defaults(run=_build, after_interrupt="Run the same command to continue")


def _build(options: argparse.Namespace) -> int:
    from shards.build.build import SHOWN_REJECTIONS, BuildRequest, build  # noqa: PLC0415 - not loaded for --help
    from shards.build.train_command import train_command  # noqa: PLC0415
    from shards.dataset.workplace import REJECTED  # noqa: PLC0415

    if options.resize != "none" and not options.resize.isdecimal():
        raise ShardError(f"--resize {options.resize}: give a number of pixels, or none")
    if options.workers < 0:
        raise ShardError(f"--workers {options.workers}: give 0 or more")
    rules = PictureRules(None if options.resize == "none" else int(options.resize), options.quality, options.max_pixels, options.max_bytes)
    storage = parse_options(options.storage)
    request = BuildRequest(
        options.source,
        options.destination,
        PlanSettings(rules, options.shard_size, options.seed, options.prefix),
        tuple(options.include),
        options.labels,
        options.label_pattern,
        storage if options.source_storage is None else parse_options(options.source_storage),
        storage,
        options.workers,
        options.overwrite,
        split=options.split,
    )
    result = build(request)
    manifest, listing, shown = result.manifest, result.listing, redacted(options.destination)
    print(printable(f"{shown}: already built" if result.already else shown))
    print(f"  {counted(manifest.total_samples, 'picture')} in {counted(len(manifest.records), 'shard')}, {megabytes(manifest.total_bytes)}")
    print(f"  from {counted(len(listing), 'picture')}, {megabytes(listing.total_bytes)}; classes: {len(manifest.classes) or 'none'}")
    if not listing.classes and request.label_pattern is None and request.labels == "folder" and (head := listing.folder_around):
        print(printable(f"    all pictures lie in {head}; its folders are the classes with --label-pattern '^{re.escape(head)}/([^/]+)/'"))
    if listing.other:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in listing.other.most_common(8))
        print(printable(f"  not pictures, left out: {counted(sum(listing.other.values()), 'file')} ({kinds})"))
    if listing.hidden:
        print(printable(f"  {shown_left_out(listing.hidden)}"))
    if listing.other_splits:
        print(printable(f"  pictures of other splits, left out: {mixture(listing.other_splits.items())}"))
    if listing.doubles:
        print(f"  names that differ in the extension alone: {listing.doubles:,}; all are stored (take one kind with --include '*.jpg')")
    if listing.excluded:
        print(f"  left out because they match no --include: {counted(listing.excluded, 'picture')}")
    if result.rejected:
        print(
            printable(f"  rejected: {counted(len(result.rejected), 'picture')} that can't be stored, all listed in {join(shown, REJECTED)}")
        )
        for name, reason in result.rejected[:SHOWN_REJECTIONS]:
            print(printable(f"    {name}: {reason}"))
    print(printable(next_command("python", "-m", "shards", "verify", shown, storage=storage)))
    if command := train_command(manifest.total_samples, options.destination, storage, gpu=shutil.which("nvidia-smi") is not None):
        print(printable(f"then: {command}"))
    return 0


def _add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "index", "make a data set of existing WebDataset tars; run it again to finish, or to add new tars")
    parser.add_argument(
        "urls",
        metavar="URL",
        nargs="+",
        help="a folder, a glob, braces as in shard-{000000..000099}.tar, one tar, or a .txt with one of these in each line",
    )
    parser.add_argument("--to", metavar="DST", help="folder for the manifest and the indexes, if they can't go beside the tars")
    parser.add_argument(
        "--digests", choices=["read", "none"], default="read", help="none reads little more than headers; damaged samples then go unnoticed"
    )
    parser.add_argument(
        "--picture",
        metavar="EXT",
        help="extension of the picture to take, or several, best first: png, left.jpg, 'jpg;jpeg;webp'",
    )
    parser.add_argument(
        "--key-ends",
        choices=["first-dot", "last-dot"],
        default="first-dot",
        help="first-dot, as webdataset: 0.seg.png is the file seg.png of sample 0; last-dot: for names with dots, such as 22.05.png",
    )
    parser.add_argument("--split", metavar="NAME", help="split whose tars to take: train, val, test, ...; all mixes every split")
    parser.add_argument(
        "--labels", choices=["cls", "none"], default="cls", help="cls: KEY.cls holds the class number; none leaves labels out"
    )
    parser.add_argument("--strict", action="store_true", help="stop if samples can't be used, instead of listing them and leaving them out")
    parser.add_argument("--open-ended", action="store_true", help="accept tars without the blocks of zeros that prove they are whole")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="tars read at once; 0: one per core on a disk (at most 8), four per core in a store (at most 32)",
    )
    _add_storage(parser)
    parser.add_argument("--to-storage", action="append", metavar="KEY=VALUE", help="as --storage, for DST, if DST is in another store")
    parser.set_defaults(run=_index, after_interrupt="Run the same command to continue")


def _index(options: argparse.Namespace) -> int:
    from shards.adopt.index_tars import IndexRequest, as_text, index  # noqa: PLC0415
    from shards.dataset.index import Rules  # noqa: PLC0415 - not loaded for --help

    if options.workers < 0:
        raise ShardError(f"--workers {options.workers}: give 0 or more")
    rules = Rules(
        _extensions(options.picture) if options.picture is not None else None,
        options.labels == "cls",
        options.digests == "read",
        options.open_ended,
        options.key_ends == "last-dot",
    )
    storage = parse_options(options.storage)
    to_storage = storage if options.to_storage is None else parse_options(options.to_storage)
    split = None if options.split is None else ALL if wanted_kind(options.split) == ALL else options.split
    request = IndexRequest(options.urls, options.to, rules, options.strict, storage, to_storage, options.workers, split=split)
    result = index(request)
    following = next_command("python", "-m", "shards", "verify", redacted(result.manifest.url), storage=to_storage)
    print("\n".join(printable(line) for line in (*as_text(result), following)))
    return 0


def _extensions(text: str) -> str:
    """Returns the extensions that a person names, as `shards.dataset.index.Rules` holds them."""
    from shards.dataset.index import OTHER_FORMATS, PICTURE_EXTENSIONS  # noqa: PLC0415 - not loaded for --help

    found = [word.strip("*.").lower() for word in re.split(r"[;,\s]+", text) if word.strip("*.")]
    if not found:
        raise ShardError(f"--picture {text!r}: names no extension. Give one, or several: 'jpg;jpeg;png'")
    unread = next((extension for extension in found if extension.rpartition(".")[2] in OTHER_FORMATS), None)
    if unread is not None:
        raise ShardError(f"--picture {text!r}: {unread} is not read. Convert these pictures to one of: {', '.join(PICTURE_EXTENSIONS)}")
    return ";".join(found)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "verify", "read a whole data set and prove that it is what its manifest says")
    parser.add_argument("url", metavar="URL", help="the folder of the data set, or its manifest.json")
    parser.add_argument("--workers", type=int, default=0, help="shards read at once; 0: one per core, at most 8")
    parser.add_argument("--repair-index", action="store_true", help="make a missing or damaged index again if its shard is sound")
    parser.add_argument("--decode", action="store_true", help="decode every picture, and count all that training could not read")
    _add_storage(parser)
    parser.set_defaults(run=_verify, after_interrupt="Nothing was changed")


def _verify(options: argparse.Namespace) -> int:
    from shards.build.train_command import train_command  # noqa: PLC0415
    from shards.check.verify import verify  # noqa: PLC0415

    if options.workers < 0:
        raise ShardError(f"--workers {options.workers}: give 0 or more")
    storage = parse_options(options.storage)
    findings = verify(options.url, storage, options.workers, options.repair_index, decode=options.decode)
    for problem in (*findings.problems, *findings.notes):
        print(printable(f"{problem.name}: {problem.what}"))
    for name in findings.repaired:
        print(printable(f"{name}: made again"))
    manifest = findings.manifest
    what = f"{counted(len(manifest.records), 'shard')}, {counted(manifest.total_samples, 'sample')}, {megabytes(manifest.total_bytes)}"
    if findings.problems:
        print(f"NOT sound: {counted(len(findings.problems), 'problem')} in {what}", file=sys.stderr)
        if all(problem.repairable for problem in findings.problems):
            following = next_command("python", "-m", "shards", "verify", "--repair-index", redacted(options.url), storage=storage)
        else:
            following = "next: copy the damaged shards here again, or build or index the data set anew; then verify it again"
        print(printable(following), file=sys.stderr)
        return 1
    if findings.unreadable:
        what += f", {findings.unreadable:,} of which can't be read and are replaced in training (data.max_bad_fraction)"
    if findings.unproven:
        print(
            f"sound as far as is known: {what}; {counted(findings.unproven, 'shard was', 'shards were')} indexed without reading them, "
            "so nothing proves their bytes"
        )
    else:
        print(f"sound: {what}; every byte, index and label is as the manifest says")
    folder = options.url.removesuffix("/manifest.json")
    if command := train_command(manifest.total_samples, folder, storage, gpu=shutil.which("nvidia-smi") is not None):
        print(printable(f"next: {command}"))
    return 0


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "inspect", "describe a data set and show some of its samples")
    parser.add_argument("url", metavar="URL", help="the folder of the data set, or its manifest.json")
    parser.add_argument("--shard", type=int, default=0, help="number of the shard whose samples are shown, from 0")
    parser.add_argument("--samples", type=int, default=5, help="number of samples to show")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    _add_storage(parser)
    parser.set_defaults(run=_inspect, after_interrupt="Nothing was changed")


def _inspect(options: argparse.Namespace) -> int:
    from shards.check.inspect import as_json, as_text, inspect  # noqa: PLC0415

    summary, samples = inspect(options.url, parse_options(options.storage), options.shard, max(options.samples, 0))
    print(as_json(summary, samples) if options.json else as_text(summary, samples, options.shard))
    return 0


def _add_shapes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "shapes", shapes.ABOUT)
    shapes.add_options(parser)
    _add_storage(parser)


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # no help text, so that --help does not list it; no character begins an option, so that any old command line gets the answer
    parser = commands.add_parser("simulate", add_help=False, prefix_chars="\0")
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=_simulate, after_interrupt="Nothing was changed")


def _simulate(_options: argparse.Namespace) -> int:
    print("the simulation is a program of its own now: python launch/simulate.py, with the same options", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
