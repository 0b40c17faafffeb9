"""Damages what the outside may hand us and goes through the real entry points with it, one numbered case after the other.

Run as a program of its own, so that a crash of native code, a hang or memory without bound ends this process alone; the number of the
case that runs is printed before it starts. `python -m tests.faults.fuzzing KIND NUMBER` is one case again.
"""

from __future__ import annotations

import faulthandler
import io
import json
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import DataConfig
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.loader import StreamConfig, StreamLoader
from pipeline.stream.read.samples import BadSample
from shards.build import picture
from shards.dataset import index, manifest
from shards.errors import ManifestMismatch, ShardCorrupt, ShardError
from tests.datasets import photographs, write_dataset

LONGEST = 20.0  # seconds of one case or one batch; ordinary ones take milliseconds
MEMORY = 768 << 20  # bytes of address space beyond what the process has when it starts
MAX_PIXELS = 4_000_000
DECODER = make_decoder()
COUNTS = [5, 9, 1, 7]
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
Case = Callable[[random.Random], None]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four damages: bytes and bits, numbers at their limits, ranges that are cut, doubled, moved or zeroed, an early end."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not found:
            break
        at = chance.randrange(len(found)) if chance.random() < 0.6 else chance.randrange(min(len(found), 700))
        length = min(chance.choice((1, 2, 4, 8, 30, 512, 1024)), len(found) - at)
        kind = chance.randrange(8)
        if kind == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            number = chance.choice(_EXTREMES).to_bytes(8, chance.choice(("little", "big")))
            found[at : at + length] = number[:length]
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length]
        elif kind == 5:
            found[at : at + length] = bytes(length)
        elif kind == 6:
            other = chance.randrange(len(found))
            found[at : at + length] = found[other : other + length]
        else:
            del found[at:]
    return bytes(found)


def mutate_tar(data: bytes, chance: random.Random) -> bytes:
    """A damaged tar; half of the time fields of one header, under a right checksum, so that the damage is met behind it."""
    if chance.random() < 0.4:
        return mutate(data, chance)
    found = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        at = chance.choice([member.offset for member in archive])
    for _ in range(chance.choice((1, 1, 2))):
        field = chance.randrange(6)
        if field == 0:
            found[at + 156] = chance.choice(b"\x000123457gxLKSDVMNX") if chance.random() < 0.9 else chance.randrange(256)
        elif field == 1:
            sizes = (
                b"77777777777\0",
                b"\x80" + b"\xff" * 11,
                b"\xff" * 12,
                b"\x80" + bytes(7) + b"\x10\0\0\0",
                b"-0000000001\0",
                b"0" * 12,
            )
            found[at + 124 : at + 136] = chance.choice((*sizes, f"{chance.randrange(3000):011o}\0".encode()))
        elif field == 2:
            name = chance.choice(
                (b"../../up.jpg", b"/etc/x.jpg", b"\xff\xfe.jpg", b".jpg", b"a.b.jpg", b"\0", b"000000001.jpg", b"n" * 100)
            )
            found[at : at + 100] = name.ljust(100, b"\0")
        elif field == 3:
            found[at + 257 : at + 265] = chance.choice((b"ustar  \0", b"ustar\x0000", bytes(8), b"GNUtar \0"))
        elif field == 4:
            start = at + chance.randrange(100, 500)
            found[start : start + 12] = chance.randbytes(12)
        else:
            records = (
                b"30 GNU.sparse.major=1\n",
                b"21 size=99999999999\n",
                b"12 size=-1\n\n",
                b"0 =\n",
                b"99999999 path=x\n",
                b"19 path=\xff\xfe/a.jpg\n",
            )
            found[at + 512 : at + 700] = (chance.choice(records) * 2).ljust(188, b"\0")
            found[at + 156] = chance.choice(b"xg")
    found[at + 148 : at + 156] = b" " * 8
    found[at + 148 : at + 156] = f"{sum(found[at : at + 512]):06o}\0 ".encode()
    return bytes(found) if chance.random() < 0.7 else bytes(found[: at + chance.randrange(1, 2000)])


def cuttable(jpeg: bytes) -> bytes:
    """The picture as the builder encodes it, with a table of its coded segments."""
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")
    return picture.prepare(png.getvalue(), picture.PictureRules()).data


def rewrite_numbers(data: bytes, chance: random.Random) -> bytes:
    """A manifest whose values are others and that still is JSON, with sums that hold where they can."""
    table = json.loads(data)
    strange: list[Any] = [
        0,
        -1,
        10**9,
        2**61,
        2**62,
        10**400,
        1.5,
        1e308,
        True,
        None,
        "",
        "x" * 5000,
        "../a",
        "/a",
        "a\0b",
        "\ud800",
        [],
        {},
        [[]],
    ]
    for _ in range(chance.choice((1, 1, 2))):
        if chance.random() < 0.6:
            row = chance.choice([row for row in table["shards"] if isinstance(row, list) and row])
            if chance.random() < 0.15:
                table["shards"].append(list(row) if chance.random() < 0.5 else chance.choice(strange))
                break
            column = chance.randrange(len(row))
            row[column] = chance.choice(strange[:5] if column in {1, 3} and chance.random() < 0.7 else strange)
        else:
            table[chance.choice(list(table))] = chance.choice(strange)
            break
    try:
        table["samples"] = sum(row[3] for row in table["shards"])
        table["bytes"] = sum(row[1] for row in table["shards"])
    except (TypeError, IndexError, KeyError, OverflowError):
        pass  # rows that can't be added
    return json.dumps(table).encode()


class Cases:
    """The kinds of case. Each takes a generator, and raises when what came is neither a typed error nor right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.decoder = make_decoder()
        self.pictures = photographs(sum(COUNTS), 40, 56)
        self.pictures[::2] = map(cuttable, self.pictures[::2])
        self.whole = folder / "whole"
        self.manifest = write_dataset(self.whole, self.pictures, COUNTS)
        self.tar = (self.whole / "shard-000000.tar").read_bytes()
        self.idx = (self.whole / "shard-000001.tar.idx").read_bytes()
        self.table = (self.whole / manifest.NAME).read_bytes()
        self.encoded = [*self.pictures[:4], *map(self._encoded, ("PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"))]
        self.encoded += [self._encoded("JPEG", mode="CMYK"), self._encoded("JPEG", progressive=True), self._encoded("JPEG", mode="L")]
        self.encoded += [*map(cuttable, self.pictures[:4]), self._encoded("JPEG", restart_marker_rows=1)]
        self.right = self._deliver(self.whole)

    def _encoded(self, kind: str, mode: str = "RGB", **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(self.pictures[0])).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    def tars(self, chance: random.Random) -> None:
        """`shards.dataset.index.make` gives rows that are what the tar holds, or ShardCorrupt."""
        data = mutate_tar(self.tar, chance)
        path = self.folder / "case.tar"
        path.write_bytes(data)
        try:
            with open(path, "rb") as file:
                found = index.make(file, "case.tar")
        except ShardCorrupt:
            return
        assert found.shard_bytes == len(data)
        for offset, expected, length, label in found.rows.tolist():
            assert 512 <= offset < offset + length <= len(data)
            assert index.digest(data[offset : offset + length]) == expected
            assert -1 <= label < 2**31
        assert len(index.decode(found.encode(), "again")) == len(found)

    def indexes(self, chance: random.Random) -> None:
        """`shards.dataset.index.decode` gives the very rows, or ManifestMismatch; under a right digest rows that lie in the shard."""
        data = mutate(self.idx, chance)
        signed = chance.random() < 0.5 and len(data) >= 32
        if signed:
            data = data[:24] + index.digest(data[32:]).to_bytes(8, "little") + data[32:]
        try:
            found = index.decode(data, "case.idx")
        except ManifestMismatch:
            return
        assert signed or data[32:] == self.idx[32:]
        for offset, _, length, _ in found.rows.tolist():
            assert 0 <= offset <= offset + length <= found.shard_bytes < 2**63
        assert found.encode() == data

    def manifests(self, chance: random.Random) -> None:
        """`shards.dataset.manifest.decode` gives a table that adds up and names files below its folder, or ManifestMismatch."""
        data = mutate(self.table, chance) if chance.random() < 0.5 else rewrite_numbers(self.table, chance)
        try:
            found = manifest.decode(data, "case.json", "folder")
        except ManifestMismatch:
            return
        assert found.total_samples == found.sample_counts.sum() == found.starts[-1] > 0
        assert (np.diff(found.starts) >= 0).all()
        for record in found.records:
            inside = (self.folder / record.name).resolve(), (self.folder / f"{record.identity}.tar").resolve()
            assert all(path.is_relative_to(self.folder.resolve()) for path in inside)
        again = manifest.decode(found.encode(), "again", "folder")
        assert (again.records, again.classes, again.fingerprint) == (found.records, found.classes, found.fingerprint)

    def crops(self, chance: random.Random) -> None:
        """`Decoder.crops` fills the whole crop, or gives a reason and leaves the crop as it was."""
        out = np.full((24, 24, 3), 77, np.uint8)
        rule = CropRule(chance.choice(("random", "random_resized", "center")), True, MAX_PIXELS)  # type: ignore[arg-type]
        data = mutate(chance.choice(self.encoded), chance)
        if DECODER.crops([data], [out], rule, [chance.getrandbits(64)]) != [None]:
            assert (out == 77).all()

    def stored(self, chance: random.Random) -> None:
        """`shards.build.picture.prepare` stores something that trains, or says PictureRejected."""
        resize = chance.choice((None, 24, 256))
        rules = picture.PictureRules(resize=resize, max_pixels=MAX_PIXELS)
        try:
            found = picture.prepare(mutate(chance.choice(self.encoded), chance), rules)
        except picture.PictureRejected:
            return
        assert DECODER.crops([found.data], [np.empty((24, 24, 3), np.uint8)], CropRule("random", True, MAX_PIXELS), [1]) == [None]

    def epochs(self, chance: random.Random) -> None:
        """An epoch of a StreamLoader over damaged files delivers the pixels of the whole data set's samples, or a typed error."""
        folder = self.folder / "damaged"
        shutil.copytree(self.whole, folder)
        try:
            self._damage(folder, chance)
            try:
                found = self._deliver(folder)
            except (ShardError, BadSample):
                return
            for sample, pixels in found.items():
                assert np.array_equal(pixels, self.right[sample]), f"sample {sample} has other pixels"
        finally:
            shutil.rmtree(folder)

    def _damage(self, folder: Path, chance: random.Random) -> None:
        for _ in range(chance.choice((1, 1, 2, 3))):
            path = folder / chance.choice(sorted(path.name for path in folder.iterdir()))
            if chance.random() < 0.03:
                path.unlink()
                return
            data = path.read_bytes()
            if path.name == manifest.NAME and data == self.table and chance.random() < 0.7:
                path.write_bytes(rewrite_numbers(data, chance))
            elif path.suffix == ".tar" and chance.random() < 0.6:  # of the same length, so that the samples themselves are tried
                damaged = bytearray(data)
                for _ in range(chance.choice((1, 3, 30))):
                    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
                path.write_bytes(bytes(damaged))
            else:
                path.write_bytes(mutate(data, chance))

    def _deliver(self, folder: Path) -> dict[int, Any]:
        data = DataConfig(shards=str(folder), threads=1, shuffle_block=4, lanes=4, max_bad_fraction=0.5, max_pixels=MAX_PIXELS, tail="pad")
        found: dict[int, Any] = {}
        with StreamLoader(StreamConfig(data, image_size=24, global_batch=8, seed=1, epochs=1)) as loader:
            for batch in loader:
                found.update(zip(batch.sample_ids.tolist(), batch.images.numpy().copy(), strict=True))
                watch()
        return found


def watch() -> None:
    """Ends the process with the stack of every thread when it comes no further."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)


def main(kind: str, first: int, count: int) -> None:
    warnings.simplefilter("ignore")  # Pillow warns of what damaged files hold
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder))
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        case: Case = getattr(cases, kind)
        for number in range(first, first + count):
            print(kind, number, flush=True)
            watch()
            case(random.Random(f"{kind} {number}"))
        faulthandler.cancel_dump_traceback_later()
    print("all", count, "cases of", kind, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
