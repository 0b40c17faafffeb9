"""Tars of other programs, and the samples that the webdataset library and we read from them."""

from __future__ import annotations

import functools
import io
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import webdataset

from shards.adopt.index_tars import IndexRequest, IndexResult
from shards.adopt.index_tars import index as index_tars
from shards.check.inspect import samples_of
from shards.dataset import index, manifest
from shards.dataset.index import NO_DIGEST, PICTURE_EXTENSIONS
from shards.store import Options, Store
from tests.shards.web_servers import answering

Read = tuple[str, bytes, int]


def picture(number: int, size: int = 900) -> bytes:
    """Bytes that stand for a picture: nothing here decodes them, and all differ."""
    return f"picture {number} ".encode() * (size // 10)


def write_shards(folder: Path, count: int, each: int = 5, first: int = 0, size: int = 900) -> list[Path]:
    """Shards as the webdataset library writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=each, start_shard=first, verbose=0) as writer:
        for number in range(first * each, (first + count) * each):
            writer.write({"__key__": f"{number:06d}", "jpg": picture(number, size), "cls": number % 7, "json": {"source": f"{number}"}})
    return sorted(folder.glob("*.tar"))


def plain_tar(path: Path, members: Mapping[str, bytes], *options: str) -> Path:
    """A tar made by the `tar` program of files in a folder, in the order given."""
    source = path.with_suffix(".files")
    for name, data in members.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    listed = path.with_suffix(".list")
    listed.write_text("".join(f"{name}\n" for name in members))
    subprocess.run(["tar", *options, "-C", str(source), "-cf", str(path), "-T", str(listed)], check=True)
    listed.unlink()
    return path


def run(urls: str | Path | Sequence[str], destination: str | Path | None = None, **more: Any) -> IndexResult:
    """Indexes without a word."""
    named = [str(urls)] if isinstance(urls, str | Path) else list(urls)
    return index_tars(IndexRequest(named, None if destination is None else str(destination), quiet=True, **more))


def ours(url: str | Path, options: Options | None = None) -> list[Read]:
    """(key, picture, label) of every sample, by manifest and indexes, digests checked where they are known."""
    data = manifest.load(str(url), options)
    indexes, tars, found = Store(data.url, options), Store(data.shards_url, options), []
    for shard, record in enumerate(data.records):
        bytes_ = tars.read(record.name)
        keys = [sample.key for sample in samples_of(data, shard, record.count, options)]
        for key, (offset, digest, length, label) in zip(keys, data.read_index(indexes, shard).rows.tolist(), strict=True):
            taken = bytes_[offset : offset + length]
            assert digest in {NO_DIGEST, index.digest(taken)}
            found.append((key, taken, label))
    return found


def theirs(paths: Sequence[Path]) -> list[Read]:
    """(key, picture, label) of every sample that has one picture, as the webdataset library reads them."""
    found = []
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        pictures = [data for extension, data in sample.items() if extension in PICTURE_EXTENSIONS]
        if len(pictures) == 1:
            found.append((sample["__key__"], pictures[0], int(sample.get("cls", b"-1"))))
    return found


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """(name, bytes) of every range that is read from a store in the block."""
    read: list[tuple[str, int]] = []
    plain = Store.read_range

    def read_range(store: Store, name: str, start: int, end: int) -> bytes:
        data = plain(store, name, start, end)
        read.append((name, len(data)))
        return data

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "read_range", read_range)
        yield read


@contextmanager
def served(folder: Path, times: bool = True) -> Iterator[str]:
    """A folder behind a web server that lists names without sizes, and may give no times."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def send_header(self, keyword: str, value: str) -> None:
            if times or keyword != "Last-Modified":
                super().send_header(keyword, value)

        def send_head(self) -> Any:
            asked, path = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")), Path(self.translate_path(self.path))
            if asked is None or not path.is_file():
                return super().send_head()
            data = path.read_bytes()
            part = data[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            return io.BytesIO(part)

    with answering(functools.partial(Handler, directory=str(folder))) as url:
        yield url
