"""How progress and sizes are shown."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios

import pytest

from shards import console as progress
from shards.console import ProgressReport, megabytes, printable


def test_where_output_is_no_terminal_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    report = ProgressReport("pictures", 3000, done=1000)
    report.advance(500, 10**6)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1e9)
    report.advance(0, 0)
    report.advance(1, 1)
    report.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("1,500 of 3,000 pictures, ")
    assert lines[0].endswith(" MB/s")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        report = ProgressReport("pictures", 10)
        report.advance(10, 10**6)
        report.close()
    shown = bytearray()
    with contextlib.suppress(OSError):  # at the end, since the other side is closed
        while data := os.read(reader, 65536):  # of which each may be a part
            shown += data
    os.close(reader)
    assert b"10/10" in shown
    assert b"MB/s" in shown


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    report = ProgressReport("pictures", 10, quiet=True)
    report.advance(10, 10)
    report.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_540_000, "2.5 MB"), (3 * 10**12, "3.0 TB")]
)
def test_sizes_for_people(size: int, shown: str) -> None:
    assert megabytes(size) == shown


def test_control_characters_and_broken_names_do_no_harm_to_a_terminal() -> None:
    assert printable("a\x1b[31mb\n\udcff é") == "a\\x1b[31mb\\n\\udcff é"
