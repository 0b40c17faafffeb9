"""`python -m shards shapes`: its options, and the lines that it prints."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shards.console import megabytes, printable
from shards.counting import counted
from shards.errors import ShapesError
from shards.layout import shown_left_out
from shards.shapes.labels import ShapeRules, Void
from shards.urls import parse_options, redacted, with_literal_dollars

if TYPE_CHECKING:
    from shards.shapes.bank import ShapeBank
    from shards.shapes.collect import Collected

ABOUT = "trace the objects of label pictures into a bank of shapes, one file of which masks are made (method.mask.shapes)"
_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own options; those of the store of OUT are `--storage`, as for every command."""
    rules = ShapeRules()
    parser.add_argument("source", metavar="SRC", help="folder laid out as VOCdevkit/VOC2012, or any folder of label PNGs; a path or a URL")
    parser.add_argument("bank", metavar="OUT", help="the file that is written, e.g. voc-shapes.safetensors; a path or a URL")
    parser.add_argument("--split", metavar="NAME", help="take only the pictures of ImageSets/Segmentation/NAME.txt: train, val, trainval")
    parser.add_argument("--min-pixels", type=int, default=rules.min_pixels, help="fewest pixels of an object that becomes a shape")
    parser.add_argument(
        "--void",
        default=rules.void,
        metavar="INDEX|none",
        help="index of the pixels that belong to nothing; auto: 255, and 65535 in pictures of 16 bits",
    )
    parser.add_argument("--max-pixels", type=int, default=rules.max_pixels, help="larger pictures are refused before they are decoded")
    parser.add_argument("--max-bytes", type=int, default=rules.max_bytes, help="longer files are refused before they are read")
    parser.add_argument("--threads", type=int, default=0, help="pictures read at once; 0: two per core, at most 8")
    parser.add_argument("--sheet", metavar="FILE.png", help="draw 64 masks of the new bank with their statistics into this local file")
    parser.add_argument("--overwrite", action="store_true", help="replace another bank of shapes in OUT")
    parser.add_argument(
        "--source-storage", action="append", metavar="KEY=VALUE", help="as --storage, for SRC, if SRC is in another store than OUT"
    )
    parser.set_defaults(run=run, after_interrupt="Nothing was written")


def run(options: argparse.Namespace) -> int:
    """Traces, writes and describes a bank; returns the exit code."""
    from shards.shapes.bank import check_target, write_bank  # noqa: PLC0415 - not loaded for --help
    from shards.shapes.collect import collect  # noqa: PLC0415
    from shards.shapes.sheet_file import check_sheet  # noqa: PLC0415

    for name, least in (("min_pixels", 1), ("max_pixels", 1), ("max_bytes", 1), ("threads", 0)):
        if getattr(options, name) < least:
            raise ShapesError(f"--{name.replace('_', '-')} {getattr(options, name)}: give {least} or more")
    rules = ShapeRules(options.min_pixels, options.max_pixels, options.max_bytes, _void(options.void))
    storage = parse_options(options.storage)
    check_target(options.bank, storage, options.overwrite)
    if options.sheet:
        check_sheet(options.sheet, options.bank)
    source_storage = storage if options.source_storage is None else parse_options(options.source_storage)
    found = collect(options.source, source_storage, options.split, rules, options.threads)
    length = write_bank(options.bank, found.bank, storage)
    print("\n".join(printable(line) for line in _as_text(found, options.bank, length)), flush=True)
    if not options.sheet:
        return 0
    before = _stamp(options.sheet)
    try:
        return _draw(found.bank, options.sheet)
    except KeyboardInterrupt:
        drawn = _stamp(options.sheet) != before
        and_sheet = "and the sheet are written" if drawn else "is written, the sheet is not: python -m pipeline.masking draws one"
        print(f"interrupted. The bank {and_sheet}", file=sys.stderr)
        return 130


def _stamp(sheet: str) -> tuple[int, int] | None:
    """Returns inode and time of the sheet, because an older one may lie there; None where there is no sheet."""
    with suppress(OSError):
        found = Path(sheet).stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _void(text: str) -> Void:
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ShapesError(f"--void {text}: give an index from 1 to 65535, or none")
    return int(text)


def _as_text(found: Collected, url: str, length: int) -> list[str]:
    """Writes the bank, its origin, and everything that was left out."""
    bank, origin, pictures = found.bank, found.bank.provenance, found.pictures
    layout = "in the layout of PASCAL VOC" if origin.kind == "voc" else "of a folder"
    chosen = f", list {origin.split}" if origin.split else ""
    lines = [
        redacted(url),
        f"  {counted(len(bank.silhouettes), 'shape')}, {megabytes(length)}, digest {bank.digest}",
        f"  from {counted(origin.objects, 'object')} of {counted(origin.pictures, 'label picture')} {layout}{chosen}; "
        f"{counted(origin.void_pixels, 'pixel')} void",
    ]
    lines += [f"  left out, {cause}: {counted(count, 'object')}" for cause, count in origin.left_out.items()]
    if found.without_objects:
        names = ", ".join(found.without_objects[:_SHOWN]) + (", ..." if len(found.without_objects) > _SHOWN else "")
        lines.append(f"  without objects: {counted(len(found.without_objects), 'picture')} ({names})")
    if pictures.other:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in pictures.other.most_common(8))
        lines.append(f"  not PNG, left out: {counted(sum(pictures.other.values()), 'file')} ({kinds})")
    if pictures.hidden:
        lines.append(f"  {shown_left_out(pictures.hidden)}")
    from shards.shapes.tracing import RAGGED, THIN  # noqa: PLC0415

    ragged = sum(origin.left_out.get(cause, 0) for cause in (RAGGED, THIN))
    if ragged > len(bank.silhouettes):
        lines.append("  warning: most objects are ragged or scattered: these look like photographs, not labels")
    return [*lines, f"next: train with --method.mask.shapes {shlex.quote(with_literal_dollars(redacted(url)))}"]


def _draw(bank: ShapeBank, sheet: str) -> int:
    """Starts the program that draws a sheet of masks; returns its exit code. Masks belong to the pipeline, which shards do not import."""
    from shards.shapes.bank import write_bank  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:  # a copy, so that no option of a store stands on a command line
        copy = Path(folder) / "bank.safetensors"
        write_bank(str(copy), bank)
        words = [sys.executable, "-m", "pipeline.masking", str(copy), str(Path(sheet).absolute())]
        return subprocess.run(words, check=False, start_new_session=True).returncode  # a session apart, so that Ctrl-C has one answer
