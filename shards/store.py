"""One folder of objects behind a URL: a local folder, s3:// or whatever else fsspec opens.

Every file and object appears whole or not at all: a local file by temporary name, fsync and rename, an object by the store's own atomic
put. URLs that would run a program (`pipe:`) or chain file systems (`a::b`) are refused. Credentials come from the places where users of
s3fs and fsspec keep them (profiles, roles, environment, fsspec configuration) or from `options`, and never appear in a message.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from shards import web
from shards.errors import StoreError, StoreOptionsError
from shards.explanations import Operation, access_refused, mistyped_option, wrong_option
from shards.local_files import TEMPORARY_PREFIX, files_below, sync_folder, whole_file
from shards.remote_listing import find
from shards.urls import join, reason_of, redacted, scheme, typed_option

Options = Mapping[str, Any]
Info = Mapping[str, Any]
"""Description of an object as fsspec gives it: `type`, `size` and what else the store tells."""
_CLIENT_ERRORS = ("botocore", "aiobotocore", "aiohttp", "fsspec", "asyncio", "gcsfs", "azure", "adlfs")
_DELETE_THREADS = 16
_READ_BLOCK = 8 << 20
T = TypeVar("T")


class Store:
    """The objects below one URL. Names are relative to it and use '/'.

    Make a store in the process that uses it, because s3fs clients don't survive a fork. Options that are text, as on a command line or in
    a configuration file, become the value that they spell: `true`, `4`, `{"json": 1}`.

    Raises:
        StoreError: from every method, naming the URL and what to do.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        if not url:
            raise StoreError("an empty URL: give a folder or something like s3://bucket/prefix")
        if url.startswith("pipe:") or "::" in url:
            raise StoreError(f"{redacted(url)}: URLs that run programs or chain file systems are not opened")
        if (name := scheme(url)) and not url.startswith(f"{name}://"):  # a local folder of that name would be made without a word
            raise StoreError(f"{url}: has one slash behind {name}. Write {name}://..., or ./{url} for a folder of that name")
        self.url = url.rstrip("/") if url.rstrip("/") else url
        self.options = {key: typed_option(key, value) for key, value in (options or {}).items()}
        try:
            located = str(Path(self.url).expanduser()) if self.url.startswith("~") else self.url
            if wrong := mistyped_option(fsspec.get_filesystem_class(fsspec.core.split_protocol(located)[0]), self.options):
                raise StoreOptionsError(f"{redacted(url)}: {wrong}")
            self.fs, self.root = fsspec.core.url_to_fs(located, **self.options)
        except (ImportError, ValueError, TypeError, OSError, RuntimeError) as error:  # RuntimeError: ~name of a user who does not exist
            raise StoreError(f"{redacted(url)}: {reason_of(error)}") from error
        self.root = self.root.rstrip("/") or "/"

    @property
    def local(self) -> Path | None:
        """The local folder; None for a store elsewhere."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def path(self, name: str) -> str:
        """Returns the path of the object `name` in the file system `fs`."""
        if name.startswith("/") or ".." in name.split("/"):
            raise StoreError(f"{name!r}: leaves the folder {redacted(self.url)}")
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def describe(self, name: str = "") -> str:
        """Returns the URL of `name` for messages, without credentials."""
        return redacted(join(self.url, name) if name else self.url)

    def read(self, name: str) -> bytes:
        """Reads all bytes of one object."""
        self.fs.invalidate_cache()  # clients look sizes up in an earlier listing, which may be older than the object
        return self.attempt(name, lambda: bytes(self.fs.cat_file(self.path(name))))

    def whole(self, name: str) -> bytes | None:
        """Reads all bytes of one object; None where there is no such object."""
        return None if self.size(name) is None else self.read(name)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Reads bytes [start, end) of one object. The store may send fewer: compare the length with the known one."""
        if start >= end:  # s3fs would send the whole object, or refuse
            return b""
        return self.attempt(name, lambda: self._range(name, start, end))

    def size(self, name: str) -> int | None:
        """Returns the size of an object in bytes; None where there is no such object (a folder is none)."""
        self.fs.invalidate_cache()
        info = self.info(name)
        if info is None or info["type"] == "directory":
            return None
        return len(self.read(name)) if info["size"] is None and web.is_web(self.fs) else int(info["size"] or 0)

    def info(self, name: str) -> Info | None:
        """Asks for the description of an object or a folder; None where there is neither. A web server's tells whether it has `ranges`."""

        def ask() -> Info | None:
            try:
                path = self.path(name)
                found: Info = sync(self.fs.loop, web.info, self.fs, path) if web.is_web(self.fs) else self.fs.info(path)
                return found
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self.attempt(name, ask, "look up")

    def list(self, folder: str = "", deep: bool = True, strict: bool = False) -> list[tuple[str, int]]:
        """Lists (name, size in bytes) of everything below a folder, sorted by name, without temporary files.

        Args:
            folder: folder below this store.
            deep: list everything below the folder; else only what lies right in it.
            strict: raise for parts of a local folder that can't be listed, instead of skipping them.

        Links of a local folder are followed. An object that the store lists without a size has size 0.
        """

        def walk() -> list[tuple[str, int]]:
            if self.local is not None:
                files = files_below(self.local, self.path(folder)[len(self.root.rstrip("/")) + 1 :], None if deep else 1, strict)
                return sorted((name, status.st_size if status else 0) for name, status in files)
            found = find(self.fs, self.path(folder), None if deep else 1)
            start = len(self.root.rstrip("/")) + 1
            return sorted((path[start:], int(info.get("size") or 0)) for path, info in found.items())

        self.fs.invalidate_cache()
        found = self.attempt(folder, walk, "list")
        return [(name, size) for name, size in found if not name.rpartition("/")[2].startswith(TEMPORARY_PREFIX)]

    def entries(self, folder: str = "") -> Sequence[Mapping[str, Any]]:
        """Lists the objects right in a folder as fsspec describes them: `name` (below `fs`, not below this store), `type`, `size`."""

        def look() -> Sequence[Mapping[str, Any]]:
            found: Sequence[Mapping[str, Any]] = self.fs.ls(self.path(folder), detail=True, refresh=True)
            self.fs.invalidate_cache(self.path(folder))  # else the listings of a large tree stay in memory
            return found

        return self.attempt(folder, look, "list")

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Opens one object as a seekable file, in blocks that suit a reader who goes forward."""
        with self.as_store_errors(name):
            if self.local is not None:
                with open(self.path(name), "rb") as plain:
                    yield plain
                return
            self.fs.invalidate_cache()
            known = {}
            if web.is_web(self.fs):
                info = self.info(name) or {}
                if not info.get("ranges", True):
                    raise StoreError(f"{self.describe(name)}: {web.NO_RANGES}")
                known = {"size": info.get("size")}
            opened = self.attempt(
                name, lambda: self.fs.open(self.path(name), "rb", block_size=_READ_BLOCK, cache_type="readahead", **known)
            )
            with opened as file:
                yield file

    def make_folder(self) -> None:
        """Makes the folder itself if it is local; other stores need none."""
        if self.local is not None:
            self.attempt("", lambda: Path(self.root).mkdir(parents=True, exist_ok=True), "write")

    def write(self, name: str, data: bytes) -> None:
        """Writes one object whole or not at all."""
        if self.local is None:
            self.attempt(name, lambda: self.fs.pipe_file(self.path(name), data), "write")
            return
        with self.writing(name) as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str, block: int | None = None) -> Iterator[IO[bytes]]:
        """Opens a file that becomes the object `name` when the block ends, and leaves nothing behind when the block raises.

        Args:
            name: name of the object.
            block: bytes per part of an upload to a store, at least 5 MiB; None takes the client's default.
        """
        folder = self.local
        if folder is None:
            with self.as_store_errors(name, "write"):
                file = self.attempt(name, lambda: self.fs.open(self.path(name), "wb", block_size=block), "write")
                try:
                    yield file
                except BaseException:
                    file.discard()
                    file.closed = True
                    raise
                self.attempt(name, file.close, "write")
            return
        target = Path(self.path(name))
        with self.as_store_errors(name, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as file:
                yield file

    def abort_uploads(self, chosen: Callable[[str], object]) -> int:
        """Aborts unfinished multipart uploads to S3, because their parts are paid for and not listed; returns how many.

        Args:
            chosen: returns whether the upload of the object of this name is aborted. An upload that is still running fails then.
        """
        if "s3" not in self.fs.protocol:
            return 0
        bucket, key, _ = self.fs.split_path(self.root)
        prefix = f"{key}/" if key else ""

        def abort() -> int:
            count, marker = 0, dict[str, str]()
            while True:
                found = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
                for upload in found.get("Uploads", []):
                    if upload["Key"].startswith(prefix) and chosen(upload["Key"][len(prefix) :]):
                        with suppress(FileNotFoundError):
                            self.fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                        count += 1
                if not found.get("IsTruncated"):
                    return count
                marker = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}

        return self.attempt("", abort, "delete")

    def upload(self, source: Path, name: str) -> None:
        """Copies a local file to the object `name`."""
        if self.local is None:
            self.attempt(name, lambda: self.fs.put_file(str(source), self.path(name)), "write")
            return
        with self.writing(name) as file, open(source, "rb") as data:
            while chunk := data.read(1 << 20):
                file.write(chunk)

    def adopt_file(self, source: Path, name: str) -> None:
        """Turns a finished local file into the object `name`, by rename on the same disk, else by copying. The local file is gone then."""
        if self.local is None:
            self.upload(source, name)
            source.unlink()
            return
        target = Path(self.path(name))
        with self.as_store_errors(name, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(source, "rb") as file:
                os.fsync(file.fileno())
            try:
                os.replace(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self.upload(source, name)
                source.unlink()
            sync_folder(target.parent)

    def head(self, name: str, count: int) -> bytes:
        """Reads the first `count` bytes of one object, all of a shorter one."""
        return self.attempt(name, lambda: self._range(name, 0, count)) if self.size(name) else b""

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects by name, several at once, and nothing that lies below them. A missing object is no error."""

        def remove(name: str) -> None:
            with self.as_store_errors(name, "delete"), suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            list(pool.map(remove, names))
        self.fs.invalidate_cache()

    def delete(self, name: str) -> None:
        """Removes one object, or a folder with everything below it. A missing one is no error."""

        def remove(path: str) -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)

        def remove_all() -> None:
            # not fs.rm, which takes *, ? and [ in a path for a pattern and deletes what matches
            target = self.path(name)
            try:
                below = find(self.fs, target) if self.local is None else self.fs.find(target)
            except (FileNotFoundError, NotADirectoryError):
                return
            with ThreadPoolExecutor(_DELETE_THREADS) as pool:
                for _ in pool.map(remove, below):
                    pass
            if self.local is not None and Path(target).is_dir():
                for folder, _, _ in os.walk(target, topdown=False):
                    Path(folder).rmdir()

        self.fs.invalidate_cache()
        self.attempt(name, remove_all, "delete")
        self.fs.invalidate_cache()

    @contextmanager
    def as_store_errors(self, name: str, operation: Operation = "read") -> Iterator[None]:
        """Turns errors of the store's client in the block into a StoreError that names the object `name`, the operation and what to do."""
        try:
            yield
        except web.UnfitServer as error:
            raise StoreError(f"{self.describe(name)}: {error}") from error
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise StoreError(f"{self.describe(name)}: not found. Check the bucket, the folder and the spelling") from error
        except PermissionError as error:
            raise StoreError(f"{self.describe(name)}: {access_refused(error, operation, self.fs)}") from error
        except NotImplementedError as error:
            if operation not in ("write", "delete"):
                raise
            raise StoreError(f"{self.describe(name)}: can only be read. Choose a folder or a bucket") from error
        except Exception as error:
            if wrong := wrong_option(error, self.fs):
                raise StoreOptionsError(f"{self.describe(name)}: {wrong}") from error
            if not isinstance(error, OSError) and not type(error).__module__.startswith(_CLIENT_ERRORS):
                raise
            raise StoreError(f"{self.describe(name)}: {reason_of(error)}") from error

    def attempt(self, name: str, action: Callable[[], T], operation: Operation = "read") -> T:
        """Calls the store's client, as in `as_store_errors`; what the client can't make of the store's options is a StoreError too."""
        with self.as_store_errors(name, operation):
            try:
                return action()
            except (TypeError, ValueError) as error:  # a client's answer to an option it does not know, given when it first connects
                if wrong_option(error, self.fs):
                    raise
                raise StoreError(f"{self.describe(name)}: {reason_of(error)}. Check the options of the store") from error

    def _range(self, name: str, start: int, end: int) -> bytes:
        if web.is_web(self.fs):
            return bytes(sync(self.fs.loop, web.read_range, self.fs, self.path(name), start, end))
        return bytes(self.fs.cat_file(self.path(name), start=start, end=end))
