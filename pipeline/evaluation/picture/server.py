"""The page on which a person paints a hole and sees it filled, served on the loopback interface alone.

Nothing of a picture is kept: it comes in a request, is filled in memory, and goes back in the answer. A page of another site can't use the
server, because the host that a browser asked for must be this machine, and a request to fill must come from the page itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.evaluation.painter import Painter
from pipeline.evaluation.picture.fill import fill
from pipeline.evaluation.picture.hole import HoleInvalid, Stroke, of_strokes, read_strokes
from pipeline.evaluation.picture.picture_file import Picture, PictureInvalid, encoded, preview, read_picture
from shards.errors import ExplainedError

MOST_BYTES = 64_000_000
"""Most bytes of a request: a picture and its strokes."""
_LONGEST_STROKES = 4_000_000  # bytes
_SECONDS_TO_SEND = 60.0  # in which a request must have come whole, because the next one waits for it
_SECONDS_TO_CLOSE = 0.3  # in which connections without a request close at the end
_SECONDS_TO_ANSWER = 2.0  # in which an answer must have been sent at the end
_MOST_WAITING = 8
_LONGEST_SHOWN = 2048  # pixels of a preview's longer side: as many as the canvas has
_INTERRUPTED = 130  # exit code after a second Ctrl-C, as of the other commands
_HOSTS = frozenset({"127.0.0.1", "localhost"})
_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class PageSettings:
    """Settings of the page.

    Attributes:
        max_pixels: most pixels of a picture.
        seed: seed of what the network draws.
        as_painted: keep the colours that the network paints.
        max_bytes: most bytes of a request.
    """

    max_pixels: int
    seed: int = 0
    as_painted: bool = False
    max_bytes: int = MOST_BYTES


class _Refused(Exception):
    """A request that is not answered with a picture: status and one line for the page."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class PaintPage:
    """The application: three files; `/upright`, which shows a picture as it is read here, because browsers do not agree on how a file is
    turned; and `/fill`. One picture is in work at a time.

    Args:
        painter: painter to fill with.
        settings: settings of the page.

    Attributes:
        waiting: number of requests that wait or are in work.
    """

    def __init__(self, painter: Painter, settings: PageSettings) -> None:
        self._painter, self._settings = painter, settings
        self._turn, self.waiting = asyncio.Lock(), 0
        routes = [Route(path, _file(*named)) for path, named in _FILES.items()]
        works = {"/upright": self._upright, "/fill": self._filled}
        routes += [Route(path, partial(self._answer, work), methods=["POST"]) for path, work in works.items()]
        self.app: ASGIApp = _Guard(Starlette(routes=routes, exception_handlers={_Refused: _refusal}))

    async def _answer(self, work: Callable[[bytes], Response], request: Request) -> Response:
        origin = request.headers.get("origin", "")
        if origin != f"http://{request.headers['host']}":
            raise _Refused(403, "only the page of this server may ask for a filling")
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            raise _Refused(411, "the request does not say its length (Content-Length)")
        if int(length) > self._settings.max_bytes:
            raise _Refused(413, f"the picture has more bytes than are taken here, {self._settings.max_bytes:,}")
        if self.waiting >= _MOST_WAITING:
            raise _Refused(503, "too many pictures are waiting to be filled. Try again in a while")
        self.waiting += 1
        try:
            async with self._turn:  # one body in memory and one picture in work at a time
                body = await self._body(request)
                return await asyncio.to_thread(_explained, work, body)
        finally:
            self.waiting -= 1

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(_SECONDS_TO_SEND):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self._settings.max_bytes:
                        raise _Refused(413, f"the picture has more bytes than are taken here, {self._settings.max_bytes:,}")
        except TimeoutError:
            raise _Refused(408, "the picture did not come whole in time") from None
        except ClientDisconnect:
            raise _Refused(400, "the picture did not come whole") from None
        return bytes(body)

    def _upright(self, body: bytes) -> Response:
        """Shows a picture as it is filled: upright, small enough for a canvas, with the size of the whole picture in a header."""
        picture = self._read(body)
        said = {"width": picture.width, "height": picture.height}
        shown = encoded(preview(picture, _LONGEST_SHOWN), "PNG", "the picture")[0]
        return Response(shown, media_type="image/png", headers={"X-Picture": json.dumps(said)})

    def _filled(self, body: bytes) -> Response:
        """Fills the picture of a request: a line of JSON with the strokes, then the bytes of the picture's file."""
        wanted, strokes, data = _parsed(body)
        picture = self._read(data)
        if wanted != (picture.width, picture.height):
            raise PictureInvalid(
                f"the strokes are of a picture of {wanted[0]} x {wanted[1]} pixels, and this one has {picture.width} x {picture.height}. "
                "Open it anew"
            )
        hole = of_strokes(strokes, picture.height, picture.width)
        settings = self._settings
        filled, parts = fill(self._painter, picture, hole, "the hole", settings.seed, settings.as_painted)
        said = {"pixels": int(hole.sum()), "step": self._painter.step, "blind": any(part.blind for part in parts)}
        return Response(encoded(filled, "PNG", "the picture")[0], media_type="image/png", headers={"X-Filled": json.dumps(said)})

    def _read(self, data: bytes) -> Picture:
        return read_picture(data, self._settings.max_pixels, "the picture")


def _explained(work: Callable[[bytes], Response], body: bytes) -> Response:
    """Works on a request, on a thread; an error becomes one line for the page."""
    try:
        return work(body)
    except ExplainedError as error:
        return JSONResponse({"error": str(error)}, 400)
    except MemoryError:
        return JSONResponse({"error": "this machine has too little memory for the picture"}, 507)


class _Guard:
    """Lets only requests for this machine's own name through, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and _host_name(hosts[0]) in _HOSTS:
            await self._app(scope, receive, with_headers)
        else:  # a name that somebody else has made an address of this machine (DNS rebinding)
            await JSONResponse({"error": "this page is served to this machine only"}, 421)(scope, receive, with_headers)


class _Server(uvicorn.Server):
    """The server, which waits at its end for the pictures that were asked for, until a second signal."""

    def __init__(self, config: uvicorn.Config, page: PaintPage) -> None:
        super().__init__(config)
        self._page = page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server on Ctrl-C or SIGTERM; the process at once when it ends already, because a thread in work can't be ended
        otherwise and there is nothing to write."""
        if self.should_exit:
            os._exit(_INTERRUPTED)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits without bound for pictures in work, and a moment for their sending: a client that does not read its answer loses it."""
        ending = asyncio.create_task(super().shutdown(sockets))
        await asyncio.wait([ending], timeout=_SECONDS_TO_CLOSE)
        if self._page.waiting:
            print("waiting for the picture that is being filled; Ctrl-C again ends the page at once", flush=True)
        elif self.server_state.connections:
            print("waiting for an answer that is being sent; Ctrl-C again ends the page at once", flush=True)
        while not ending.done():
            working = self._page.waiting
            await asyncio.wait([ending], timeout=_SECONDS_TO_ANSWER)
            if not working and not self._page.waiting:
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
        await ending


class RunningPage:
    """The server of a page.

    Args:
        painter: painter to fill with.
        settings: settings of the page.
        port: port to listen at; 0 takes a free one.

    Attributes:
        url: address of the page.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, painter: Painter, settings: PageSettings, port: int = 0) -> None:
        self._socket = socket.socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))
            self._socket.listen()  # now, so that a browser that is given the address waits until `run` answers
        except OSError as error:
            self._socket.close()
            raise OSError(
                error.errno, f"port {port} of this machine can't be used ({error.strerror}). Choose another with --port"
            ) from error
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        page = PaintPage(painter, settings)
        config = uvicorn.Config(page.app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False)
        self._server = _Server(config, page)

    def run(self) -> None:
        """Serves until `stop` is called, or a signal comes (on the main thread)."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Lets `run` return; may be called from any thread."""
        self._server.should_exit = True


def serve(painter: Painter, settings: PageSettings, port: int, say: Callable[[str], object]) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises:
        OSError: the port is taken.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    page = RunningPage(painter, settings, port)
    say(f"{painter.where}: open {page.url} in a browser on this machine; Ctrl-C ends the page")
    with suppress(KeyboardInterrupt):  # uvicorn repeats the signal, which is ignored where `&` in a script started the process
        page.run()
    say("the page is closed; nothing of the pictures was kept")


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    text = (Path(__file__).parent / name).read_bytes()

    def answer(_request: Request) -> Response:
        return Response(text, media_type=kind)

    return answer


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)  # noqa: S101 - the only class that is registered
    return JSONResponse({"error": error.text}, error.status)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"http://{host}").hostname or ""
    except ValueError:
        return ""


def _parsed(body: bytes) -> tuple[tuple[int, int], list[Stroke], bytes]:
    """Takes a request apart: width and height of the picture that the page shows, the strokes, and the picture's bytes.

    Raises:
        HoleInvalid: the request is not one of the page.
    """
    line, end, data = body[: _LONGEST_STROKES + 1].partition(b"\n")
    if not end:
        raise HoleInvalid("the request is not one of this page, or it has too many strokes. Undo some of them")
    try:
        fields: Any = json.loads(line)
        size = (int(fields["width"]), int(fields["height"]))
        strokes = read_strokes(fields["strokes"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise HoleInvalid("the request is not one of this page") from None
    return size, strokes, data + body[_LONGEST_STROKES + 1 :]
