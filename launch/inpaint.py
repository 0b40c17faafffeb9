"""Fills the hole of a picture with a trained network: python launch/inpaint.py RUN PICTURE --mask MASK.png, or --hole x,y,w,h, or --serve
for a page on which the hole is painted (docs/paint.md)"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before PYTHONPATH, where another project may have a `pipeline`

from shards.console import exit_code, printable
from shards.counting import counted
from shards.errors import ExplainedError
from shards.urls import parse_options

if TYPE_CHECKING:
    from pipeline.evaluation.painter import Painter

_LONGEST_FILE = 1 << 30  # bytes
_MOST_LISTED = 8  # parts of a hole, one line each


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills one picture, or serves the page; returns 1 for an error that it explains, 130 after Ctrl-C or SIGTERM before the picture."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    for place in [number for number, word in enumerate(words[:-1]) if word == "--hole"][::-1]:
        words[place : place + 2] = [f"--hole={words[place + 1]}"]  # a negative x is no option
    options = parser.parse_args(words)
    if options.serve and (options.picture or options.mask or options.hole or options.out):
        parser.error("--serve opens pictures and paints holes on its page: leave out PICTURE, --mask, --hole and --out")
    if not options.serve and (options.picture is None or bool(options.mask) == bool(options.hole)):
        parser.error("name a PICTURE and its hole, by --mask or by --hole; or give --serve")
    if not 0 <= options.port < 1 << 16:
        parser.error(f"argument --port: {options.port} is no port, which is 0 to 65535")
    if options.max_pixels is not None and options.max_pixels < 1:
        parser.error(f"argument --max-pixels: {options.max_pixels} is less than 1")
    if not -(1 << 63) <= options.seed < 1 << 63:
        parser.error(f"argument --seed: {options.seed} has more than 64 bits")
    return exit_code(lambda: _run(options), "Nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python launch/inpaint.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or the folder or s3:// URL of its checkpoints")
    parser.add_argument("picture", metavar="PICTURE", nargs="?", type=Path, help="the picture to fill, of any size")
    parser.add_argument("--mask", type=Path, metavar="MASK.png", help="picture of the same size, white where the hole is")
    parser.add_argument(
        "--hole", action="append", metavar="x,y,w,h", help="rectangle of the hole in pixels of the upright picture; repeatable"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write, .png, .webp or .jpg (default: NAME.inpainted.png beside PICTURE)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it exists; PICTURE and MASK.png never are")
    parser.add_argument(
        "--as-painted", action="store_true", help="keep the colours that the network paints, instead of matching them around the hole"
    )
    parser.add_argument("--serve", action="store_true", help="serve a page on this machine alone, on which holes are painted")
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: one that is free)")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest that verifies)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what the network draws (default: 0)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of a picture (default: 100 million)")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="an option of the run's store, as in fsspec")
    return parser


def _run(options: argparse.Namespace) -> int:
    try:
        return _serve(options) if options.serve else _fill(options)
    except (ExplainedError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1


def _fill(options: argparse.Namespace) -> int:
    from pipeline.evaluation.picture.fill import fill  # noqa: PLC0415 - --help needs none of these
    from pipeline.evaluation.picture.hole import of_rectangles, parse_rectangle  # noqa: PLC0415
    from pipeline.evaluation.picture.picture_file import PictureInvalid, format_of, read_hole, read_picture, write_picture  # noqa: PLC0415
    from shards.dataset.pixels import MOST_PIXELS  # noqa: PLC0415

    began, most = time.monotonic(), options.max_pixels or MOST_PIXELS
    target: Path = options.out or options.picture.with_name(f"{options.picture.stem}.inpainted.png")
    format_of(target)
    data, mask = _read(options.picture, "picture"), _read(options.mask, "mask") if options.mask else b""
    for path, what in ((options.picture, "picture"), (options.mask, "mask")):
        if path and target.exists() and target.samefile(path):
            raise PictureInvalid(f"{target}: is the {what} itself, which is never replaced. Name another file with --out")
    if target.exists() and not options.overwrite:
        raise PictureInvalid(f"{target}: exists. Name another file with --out, or give --overwrite")
    if not target.resolve().parent.is_dir():
        raise PictureInvalid(f"{target}: its folder does not exist. Make it first, or name another")
    picture = read_picture(data, most, str(options.picture))
    if options.mask:
        hole, name = read_hole(mask, most, str(options.mask)), str(options.mask)
    else:
        hole, name = of_rectangles([parse_rectangle(each) for each in options.hole], picture.height, picture.width), "--hole"
    painter = _painter(options)
    filled, parts = fill(painter, picture, hole, name, options.seed, options.as_painted)
    notes = write_picture(filled, target, options.overwrite)
    for part in parts[:_MOST_LISTED]:
        print(part.sentence)
    if len(parts) > _MOST_LISTED:
        print(f"and {counted(len(parts) - _MOST_LISTED, 'other part')}")
    for note in notes:
        print(f"note: {note}")
    by = f"step {painter.step} of recipe {painter.recipe.name}"
    print(printable(f"{target}: {counted(int(hole.sum()), 'pixel')} filled by {by}, {time.monotonic() - began:.1f} s"))
    return 0


def _read(path: Path, what: str) -> bytes:
    """Reads the file of a picture or a mask, unless it is too long for one.

    Raises:
        OSError: the file can't be read, or is too long.
    """
    try:
        size = path.stat().st_size
        if size <= _LONGEST_FILE:
            return path.read_bytes()
    except OSError as error:
        raise OSError(f"{path}: the {what} can't be read ({error.strerror}). Name the file of a {what} that can") from error
    raise OSError(f"{path}: {counted(size, 'byte is', 'bytes are')} too many for a {what}; {_LONGEST_FILE:,} is the most")


def _painter(options: argparse.Namespace) -> Painter:
    import torch  # noqa: PLC0415

    from pipeline.evaluation.architecture import EncoderInvalid  # noqa: PLC0415
    from pipeline.evaluation.painter import read_painter  # noqa: PLC0415

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise EncoderInvalid(f"--device {device}: can't be used. {str(error).splitlines()[0]}") from error
    return read_painter(options.run, parse_options(options.storage), options.step, device)


def _serve(options: argparse.Namespace) -> int:
    try:
        from pipeline.evaluation.picture.server import PageSettings, serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        print(f"error: {error.name} is not installed: pip install -e '.[serve]'", file=sys.stderr)
        return 1
    from shards.dataset.pixels import MOST_PIXELS  # noqa: PLC0415

    settings = PageSettings(options.max_pixels or MOST_PIXELS, options.seed, options.as_painted)
    serve(_painter(options), settings, options.port, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
