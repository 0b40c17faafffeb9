"""The server of the page, asked by other programs than its own page: refused in one line, with headers that keep other sites out."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.evaluation.painter import read_painter
from pipeline.evaluation.picture.server import PageSettings, RunningPage, serve
from tests.pipeline.evaluation.paint_page import served
from tests.pipeline.evaluation.runs import write_run

MOST = 50_000
STROKES = [{"radius": 0, "points": [[5, 5], [15, 15]]}]


@pytest.fixture(scope="module")
def address(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Iterator[str]:
    run = made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))
    with served(run, max_bytes=MOST, max_pixels=10_000) as url:
        yield urlsplit(url).netloc


def ask(address: str, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 40, 3)).save(file, "PNG")
    return file.getvalue()


def request(strokes: Any = STROKES, width: Any = 40, data: bytes | None = None) -> bytes:
    return json.dumps({"width": width, "height": 40, "strokes": strokes}).encode() + b"\n" + (picture() if data is None else data)


def test_the_page_is_three_files_that_need_no_network(address: str) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = ask(address, path=path)
        assert status == 200
        assert headers["content-type"].startswith(kind)
        assert b"http://" not in body
        assert b"https://" not in body
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    assert ask(address, path="/page.py")[0] == 404


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1.attacker.example", "[::1", ""])
def test_a_name_that_somebody_else_gave_this_machine_is_refused(address: str, host: str) -> None:
    for method, path in (("GET", "/"), ("POST", "/fill")):
        status, headers, body = ask(address, method, path, request(), Host=host, Origin=f"http://{host}")
        assert status == 421
        assert json.loads(body) == {"error": "this page is served to this machine only"}
        assert "content-security-policy" in headers


def test_names_of_this_machine_are_answered_at_any_port_that_leads_here(address: str) -> None:
    for host in ("localhost:9000", "127.0.0.1"):
        assert ask(address, Host=host)[0] == 200
        assert ask(address, "POST", "/fill", request(), Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["http://attacker.example", "null", "http://127.0.0.1:1", None])
def test_another_site_can_not_ask_for_a_filling(address: str, origin: str | None) -> None:
    status, _, body = ask(address, "POST", "/fill", request(), **({"Origin": origin} if origin else {}))
    assert status == 403
    assert json.loads(body)["error"] == "only the page of this server may ask for a filling"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (request([]), 400, "nothing is to be filled"),
        (request([{"radius": 900, "points": [[20, 20]]}]), 400, "hides the whole picture"),
        (request(width=41), 400, "the strokes are of a picture of 41 x 40 pixels, and this one has 40 x 40"),
        (request(data=b"no picture"), 400, "the picture: not in a picture format that is known here"),
        (request(data=b""), 400, "the picture: empty file"),
        (request([{"radius": -1, "points": [[1, 1]]}]), 400, "the request is not one of this page"),
        (request([{"radius": 3, "points": []}]), 400, "the request is not one of this page"),
        (request([{"radius": 3, "points": [[1, float("nan")]]}]), 400, "the request is not one of this page"),
        (request([{"radius": 1e9, "points": [[1, 1]]}]), 400, "the request is not one of this page"),
        (request("strokes"), 400, "the request is not one of this page"),
        (b"[" * 20_000 + b"\n", 400, "the request is not one of this page"),
        (b"no line", 400, "the request is not one of this page"),
        (b"\n", 400, "the request is not one of this page"),
        (request(data=bytes(MOST)), 413, "more bytes than are taken here, 50,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_can_not_be_filled_is_answered_in_one_line(address: str, body: bytes, status: int, words: str) -> None:
    answered, _, said = ask(address, "POST", "/fill", body, Origin=f"http://{address}")
    assert answered == status
    error = json.loads(said)["error"]
    assert words in error
    assert "\n" not in error


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(("kind", "note"), [("JPEG", "exif"), ("WEBP", "exif"), ("JPEG", "xmp"), ("WEBP", "xmp"), ("PNG", "xmp")])
def test_what_the_page_shows_is_what_is_filled_however_a_file_notes_its_turn(address: str, kind: str, note: str, orientation: int) -> None:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    exif, text, file = Image.Exif(), PngImagePlugin.PngInfo(), io.BytesIO()
    exif[0x0112] = orientation
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    notes = {"exif": exif} if note == "exif" else {"pnginfo": text} if kind == "PNG" else {"xmp": xmp}
    Image.open(io.BytesIO(picture())).crop((0, 0, 40, 30)).save(file, kind, lossless=True, **notes)
    origin = f"http://{address}"
    status, headers, shown = ask(address, "POST", "/upright", file.getvalue(), Origin=origin)
    size = json.loads(headers["x-picture"])
    assert (status, size) == (200, {"width": 40, "height": 30} if orientation == 3 else {"width": 30, "height": 40})
    image = Image.open(io.BytesIO(shown))
    assert not image.getexif()
    assert "xmp" not in image.info
    body = json.dumps({**size, "strokes": STROKES}).encode() + b"\n" + file.getvalue()
    was, result = (np.asarray(Image.open(io.BytesIO(data))) for data in (shown, ask(address, "POST", "/fill", body, Origin=origin)[2]))
    changed = (was != result).any(2)
    assert changed[5:15, 5:15].any()
    changed[5:15, 5:15] = False
    assert not changed.any()


def test_a_picture_that_can_not_be_shown_is_refused_before_a_hole_is_painted(address: str) -> None:
    for data, words in ((b"no picture", "not in a picture format"), (large(), "200 x 60 pixels are more than --max-pixels, 10000")):
        status, _, said = ask(address, "POST", "/upright", data, Origin=f"http://{address}")
        assert (status, words in json.loads(said)["error"]) == (400, True)
    assert ask(address, "POST", "/upright", picture())[0] == 403


def large() -> bytes:
    file = io.BytesIO()
    Image.new("L", (200, 60)).save(file, "PNG")
    return file.getvalue()


def test_a_request_without_a_length_is_told_so(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/fill", iter([b"a"]), {"Origin": f"http://{address}"}, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]) == (411, "the request does not say its length (Content-Length)")
    finally:
        connection.close()


def test_the_page_writes_nothing(
    tmp_path: Path, made_once: Callable[[str, Callable[[Path], object]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    folders = [tmp_path / "temporary", tmp_path / "working"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folders[0]))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read TMPDIR anew
    monkeypatch.chdir(folders[1])
    with served(run) as url:
        address = urlsplit(url).netloc
        for path, body, status in (("/upright", picture(), 200), ("/fill", request(), 200), ("/fill", request(data=b"no picture"), 400)):
            assert ask(address, "POST", path, body, Origin=f"http://{address}")[0] == status
            assert [list(folder.iterdir()) for folder in folders] == [[], []]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_pictures_that_come_together_are_filled_one_after_the_other(address: str) -> None:
    answers: list[tuple[int, bytes]] = []

    def fill() -> None:
        status, _, body = ask(address, "POST", "/fill", request(), Origin=f"http://{address}")
        answers.append((status, body))

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    assert {status for status, _ in answers} == {200}
    assert len({body for _, body in answers}) == 1
    result, was = (np.asarray(Image.open(io.BytesIO(data))) for data in (answers[0][1], picture()))
    hole = np.zeros((40, 40), np.bool_)
    hole[5:15, 5:15] = True
    assert np.array_equal(result[~hole], was[~hole])
    assert (result[hole] != was[hole]).any()


def test_the_first_signal_waits_for_a_filling_and_the_second_does_not(
    made_once: Callable[[str, Callable[[Path], object]], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painter = read_painter(str(made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))))
    begun, go_on, paint = threading.Event(), threading.Event(), painter.paint
    answers: list[tuple[int, dict[str, str], bytes]] = []

    def slow(*tensors: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return paint(*tensors)

    monkeypatch.setattr(painter, "paint", slow)
    monkeypatch.setattr(os, "_exit", sys.exit)  # the process of the tests goes on
    page = RunningPage(painter, PageSettings(10_000))
    address = urlsplit(page.url).netloc
    server = threading.Thread(target=page.run)
    client = threading.Thread(target=lambda: answers.append(ask(address, "POST", "/fill", request(), Origin=f"http://{address}")))
    server.start()
    client.start()
    try:
        assert begun.wait(60)
        page._server.handle_exit(signal.SIGTERM, None)
        server.join(2.5)  # more than the two seconds after which a filling was once given up
        assert server.is_alive()
        assert capsys.readouterr().out.startswith("waiting for the picture that is being filled")
        with pytest.raises(SystemExit, match="130"):
            page._server.handle_exit(signal.SIGINT, None)
    finally:
        go_on.set()
        page.stop()
        client.join(60)
        server.join(60)
    assert answers[0][0] == 200
    assert not server.is_alive()


def test_an_answer_that_nobody_takes_does_not_keep_the_server(
    made_once: Callable[[str, Callable[[Path], object]], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    painter = read_painter(str(made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))))
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8)).save(file, "BMP")
    page = RunningPage(painter, PageSettings(2_000_000))
    address, body = urlsplit(page.url), file.getvalue()
    server = threading.Thread(target=page.run)
    server.start()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the answer does not fit
        client.settimeout(60)
        client.connect((address.hostname, address.port))
        head = f"POST /upright HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: http://{address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert client.recv(1) == b"H"
        page._server.handle_exit(signal.SIGTERM, None)
        server.join(60)
        alive = server.is_alive()
    server.join(60)
    assert not alive
    assert capfd.readouterr() == ("waiting for an answer that is being sent; Ctrl-C again ends the page at once\n", "")


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["a terminal", "a script that starts it with &"])
def test_ctrl_c_is_answered_with_the_closing_line(before: Any, made_once: Callable[[str, Callable[[Path], object]], Path]) -> None:
    painter = read_painter(str(made_once("inpainting run", lambda folder: write_run(folder, "inpainting"))))
    said: list[str] = []

    def interrupt(url: str) -> None:
        assert ask(urlsplit(url).netloc)[0] == 200
        os.kill(os.getpid(), signal.SIGINT)

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            thread.append(threading.Thread(target=interrupt, args=(next(word for word in line.split() if word.startswith("http:")),)))
            thread[0].start()

    thread: list[threading.Thread] = []
    handler = signal.signal(signal.SIGINT, before)
    try:
        serve(painter, PageSettings(10_000), 0, say)
    finally:
        signal.signal(signal.SIGINT, handler)
    thread[0].join(60)
    assert said[1:] == ["the page is closed; nothing of the pictures was kept"]
