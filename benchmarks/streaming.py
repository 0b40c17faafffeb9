"""How fast do pictures reach the trainer, beside other loaders and beside what decoding alone could give?

Every comparison alternates two processes on the same two cores: the same photographs, page cache warm, crops of 227 as uint8 batches,
a horizontal flip, the same antialiasing, 2 threads or 2 workers. Ours checks every sample's digest and draws a random-region mask for
each. Prints one Markdown table; a peer that is not installed or fails is a line that says why. benchmarks/README.md has the method.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402

from benchmarks.machine import processor  # noqa: E402
from benchmarks.peers.crops import pictures  # noqa: E402
from benchmarks.peers.process import Comparison, Side, SideFailed, compare  # noqa: E402
from pipeline.masking import MaskConfig, mask_source  # noqa: E402
from pipeline.stream.decode.crop import CropRule  # noqa: E402
from pipeline.stream.decode.decoder import make_decoder  # noqa: E402
from pipeline.stream.order import SampleOrder  # noqa: E402
from shards.dataset import manifest as manifests  # noqa: E402
from shards.dataset.manifest import Manifest, ShardRecord  # noqa: E402

SIZE, WORKERS = 227, 2
_REPEATS = 12  # times that the 800 photographs come in an epoch, so that no side starts epochs all the time
_FULL, _STORED = "full size", "stored at 256"


@dataclass(frozen=True)
class Row:
    """One comparison of two sides.

    Attributes:
        name: for `--only`, and the peer's name in the table.
        module: the peer's file in benchmarks/peers.
        data: name of the shards.
        crop: kind of our crop.
        peer_crop: kind of the peer's crop.
        target: least ratio that is aimed at.
        python: interpreter that has the peer: own, peers or ffcv.
    """

    name: str
    module: str
    data: str
    crop: str
    peer_crop: str
    target: float
    python: str = "peers"


def _rows(name: str, module: str, full: float | None, stored: float | None, python: str = "peers") -> Iterator[Row]:
    for data, target in ((_FULL, full), (_STORED, stored)):
        if target is not None:
            yield Row(name, module, data, "random_resized", "random_resized", target, python)


ROWS: tuple[Row, ...] = (
    *_rows("webdataset", "webdataset_loader", 2.0, 2.3),
    *_rows("mosaicml-streaming", "mosaicml_streaming", 1.9, 1.9),
    *_rows("litdata", "litdata_streaming", 1.9, 1.9),
    *_rows("megatron-energon", "megatron_energon", 1.9, 1.9),
    *_rows("dali", "dali", 1.2, 1.2),
    *_rows("bare-threads", "bare_threads", 1.1, 0.95, "own"),
    *_rows("ffcv", "ffcv_loader", None, 1.2, "ffcv"),
    Row("decode-only", "bare_threads", _STORED, "random", "none", 0.85, "own"),
)
FRACTIONS = ("order", "masks", "mask-kinds")


def main() -> int:
    """Runs what is asked for and prints the table; 0 also where a target is not met, since timings of a busy machine prove nothing."""
    options = _arguments()
    cores = sorted(os.sched_getaffinity(0))[:WORKERS]
    os.sched_setaffinity(0, cores)  # inherited by every side
    pythons = {"own": Path(sys.executable), "peers": options.peers_python, "ffcv": options.ffcv_python}
    names = options.only or [*dict.fromkeys(row.name for row in ROWS), *FRACTIONS]
    lines, versions = [], {"python": platform.python_version()}
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=options.scratch) as scratch:
        photographs = _photographs(options.photographs, Path(scratch))
        folders = {data: build(photographs, Path(scratch), data, resize) for data, resize in ((_FULL, "none"), (_STORED, "256"))}
        for row in (row for row in ROWS if row.name in names):
            print(f"{row.name}, {row.data} ...", file=sys.stderr, flush=True)
            lines.append(run(row, folders[row.data], pythons[row.python], options, versions))
        for part in (part for part in FRACTIONS if part in names):
            print(f"{part} ...", file=sys.stderr, flush=True)
            lines += _fractions(part, Path(scratch), folders[_STORED], options)
    table = "\n".join([*_head(cores, versions, options), *lines, ""])
    print(table)
    if options.output:
        options.output.write_text(table, encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*dict.fromkeys(row.name for row in ROWS), *FRACTIONS]
    parser.add_argument("--only", action="append", choices=known, metavar="NAME", help=f"only this; repeatable: {', '.join(known)}")
    parser.add_argument("--seconds", type=float, default=12.0, help="of one measurement, about (default: 12)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    parser.add_argument("--photographs", type=int, default=0, help="use only the first so many (default: 0, all)")
    parser.add_argument("--batch", type=int, default=256, help="images a batch (default: 256)")
    decoders = ["simplejpeg", "nvimgcodec", "nvimgcodec_gpu"]
    parser.add_argument("--decoder", choices=decoders, default="simplejpeg", help="ours (default: simplejpeg)")
    parser.add_argument("--output", type=Path, help="file for the table, beside standard output")
    parser.add_argument("--scratch", type=Path, help="folder for shards and the peers' formats, about 3 GB, emptied at the end")
    bench = ROOT / ".venv-bench" / "bin" / "python"
    default = bench if bench.exists() else Path(sys.executable)
    parser.add_argument(
        "--peers-python", type=Path, default=default, help="interpreter that has the peers (default: .venv-bench's, else this)"
    )
    parser.add_argument("--ffcv-python", type=Path, help="interpreter that has ffcv (default: as --peers-python)")
    options = parser.parse_args()
    if not options.seconds > 0 or options.rounds < 1:
        parser.error("--seconds must be above 0 and --rounds 1 or more")
    options.ffcv_python = options.ffcv_python or options.peers_python
    return options


def _data_folder() -> Path:
    return Path(os.environ.get("CONTEXT_ENCODER_DATA", ROOT.parent / "shared" / "data"))


def _photographs(count: int, scratch: Path) -> Path:
    """The folder of the photographs, or of copies of the first `count` where that is above 0."""
    folder = _data_folder() / "imagenet_sample"
    if not folder.is_dir():
        raise SystemExit(f"no photographs in {folder}: set CONTEXT_ENCODER_DATA to a folder that holds imagenet_sample")
    if not count:
        return folder
    few = scratch / "photographs"
    few.mkdir()
    for path in sorted(folder.glob("*.JPEG"))[:count]:
        shutil.copyfile(path, few / path.name)
    return few


def build(photographs: Path, scratch: Path, data: str, resize: str) -> Path:
    """Builds shards of the photographs, and a data set that links to each of them several times.

    Args:
        photographs: folder of pictures.
        scratch: where both go.
        data: name of the data set.
        resize: shorter side in pixels, or none.
    """
    name = data.replace(" ", "-")
    source, folder = scratch / f"{name}-once", scratch / name
    command = [sys.executable, "-m", "shards", "build", str(photographs), str(source), "--resize", resize, "--shard-size", "100"]
    subprocess.run([*command, "--workers", str(WORKERS)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    folder.mkdir()
    once = manifests.load(str(source))
    records: list[ShardRecord] = []
    for record in (record for _ in range(_REPEATS) for record in once.records):
        linked = replace(record, name=f"shard-{len(records):06d}.tar")
        os.link(source / record.name, folder / linked.name)
        os.link(source / record.index_name, folder / linked.index_name)
        records.append(linked)
    manifest = replace(once, records=tuple(records), url=str(folder), shards_url=str(folder))
    (folder / manifests.NAME).write_bytes(manifest.encode())
    return folder


def run(row: Row, shards: Path, python: Path, options: argparse.Namespace, versions: dict[str, str]) -> str:
    """One line of the table; an error on the peer's side becomes its text."""
    where = [str(shards), "--scratch", str(shards.with_name(f"{shards.name}-peers")), "--size", str(SIZE)]
    where += ["--batch", str(options.batch), "--workers", str(WORKERS)]
    with Side(Path(sys.executable), "stream_loader", [*where, "--crop", row.crop, "--decoder", options.decoder]) as ours:
        try:
            with Side(python, row.module, [*where, "--crop", row.peer_crop]) as peer:
                versions |= ours.versions | {f"{name} ({row.name})": found for name, found in peer.versions.items()}
                return _line(row, compare(ours, peer, options.seconds, options.rounds))
        except SideFailed as error:
            return _cells(row.name, f"{row.data}, {_crop(row)}", "", "", _plain(error), f"{row.target:g}x", "not measured")


def _line(row: Row, result: Comparison) -> str:
    ratios = result.ratios
    middle = statistics.median(ratios)
    return _cells(
        row.name,
        f"{row.data}, {_crop(row)}",
        f"{statistics.median(result.ours):.0f}",
        f"{statistics.median(result.peer):.0f}",
        f"{middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
        f"{row.target:g}x",
        "met" if middle >= row.target else "not met",
    )


def _crop(row: Row) -> str:
    return {"random_resized": f"random resized {SIZE}", "random": f"random {SIZE}"}[row.crop]


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(error: SideFailed) -> str:
    return " ".join(str(error).split()).replace("|", "/")[:200]


def order_fraction(shards: Path, options: argparse.Namespace) -> str:
    """The time that `SampleOrder.global_batch` takes a sample, over whole epochs of 10^5 samples, as a fraction of a decode."""
    records = tuple(ShardRecord(f"shard-{number:06d}.tar", 0, f"{number:064x}", 1000, "") for number in range(100))
    order = SampleOrder(Manifest(records), seed=0, global_batch=256)
    stored = list(pictures(sorted(map(str, shards.glob("shard-*.tar")))[:1]))
    epoch = iter(range(10**9))

    def one_epoch() -> int:
        number = next(epoch)
        return sum(len(order.global_batch(number, index)) for index in range(order.batches_per_epoch()))

    def decode() -> int:
        for data in stored:
            simplejpeg.decode_jpeg(data, "RGB")
        return len(stored)

    return _fraction("order", "10^5 samples, of a 256 decode", one_epoch, decode, 0.01, options)


def _fractions(part: str, scratch: Path, shards: Path, options: argparse.Namespace) -> list[str]:
    """The lines of one of FRACTIONS."""
    if part == "order":
        return [order_fraction(shards, options)]
    kinds = _mask_kinds(scratch) if part == "mask-kinds" else {"masks": MaskConfig()}
    return [mask_fraction(name, mask, shards, options) for name, mask in kinds.items()]


def _mask_kinds(scratch: Path) -> dict[str, MaskConfig]:
    """Masks of every kind that is drawn anew for each picture, and of the shapes of a bank of real objects."""
    labels, bank = _data_folder() / "bsds_voc_layout" / "VOC2012", scratch / "bank.safetensors"
    command = [sys.executable, "-m", "shards", "shapes", str(labels), str(bank)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return {
        "masks, mean 0.175": MaskConfig(mean_fraction=0.175),
        "masks, bank": MaskConfig(shapes=str(bank)),
        "masks, bank, mean 0.175": MaskConfig(shapes=str(bank), mean_fraction=0.175),
        "masks, block": MaskConfig(kind="block"),
        "masks, noise_pattern": MaskConfig(kind="noise_pattern"),
    }


def mask_fraction(name: str, config: MaskConfig, shards: Path, options: argparse.Namespace) -> str:
    """The time of a mask of 227, as a fraction of a whole image's: decode, random crop, flip and mask."""
    stored = list(pictures(sorted(map(str, shards.glob("shard-*.tar")))[:1]))
    mask, image = np.empty((SIZE, SIZE), np.bool_), np.empty((SIZE, SIZE, 3), np.uint8)
    source, decoder, rule = mask_source(config), make_decoder(options.decoder), CropRule("random", True, 10**8)
    source.draw(0, mask)  # prepares the shapes, once a run
    keys = iter(range(1, 10**9))

    def masks() -> int:
        for _ in stored:
            source.draw(next(keys), mask)
        return len(stored)

    def images() -> int:
        for data in stored:
            decoder.crops([data], [image], rule, [next(keys)])
            source.draw(next(keys), mask)
        return len(stored)

    return _fraction(name, f"{SIZE}, of an image stored at 256", masks, images, 0.05, options)


def _fraction(name: str, data: str, part: Callable[[], int], whole: Callable[[], int], target: float, options: argparse.Namespace) -> str:
    """A line that compares the CPU time of two functions, each returning how many it did, in turns on one core."""
    fractions, rates = [], []
    for _ in range(options.rounds):
        rate = [_rate(function, options.seconds / 2) for function in (part, whole)]
        rates.append(rate)
        fractions.append(rate[1] / rate[0])
    fractions.sort()
    middle = statistics.median(fractions)
    first, second = (f"{statistics.median(column):.0f}" for column in zip(*rates, strict=True))
    ratio = f"{middle:.2%} ({fractions[0]:.2%}-{fractions[-1]:.2%})"
    return _cells(name, data, first, second, ratio, f"< {target:.0%}", "met" if middle < target else "not met")


def _rate(function: Callable[[], int], seconds: float) -> float:
    started, done = time.thread_time(), 0
    while time.thread_time() - started < seconds:
        done += function()
    return done / (time.thread_time() - started)


def _head(cores: Sequence[int], versions: dict[str, str], options: argparse.Namespace) -> list[str]:
    load = os.getloadavg()[0]
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {processor()}, {len(cores)} cores, load {load:.1f} at the end; "
        f"{options.rounds} rounds of about {options.seconds:g} s a side, batches of {options.batch}; "
        f"ours with digests, random-region masks and data.decoder {options.decoder}",
        "",
        "; ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        _cells("peer", "data", "ours img/s", "peer img/s", "ratio: median (min-max)", "target", "met"),
        "|---|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    sys.exit(main())
