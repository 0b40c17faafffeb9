"""How progress and sizes are shown."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TextIO

import pytest

from shards import console as progress
from shards.console import ProgressReport, exit_code, megabytes, outlive_console, printable
from tests.conftest import ROOT


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


def lost(kind: str, folder: Path) -> TextIO:
    """A console that can't be written, or lacks a character."""
    if kind == "full":
        return open("/dev/full", "w", encoding="utf-8")
    if kind == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return open(writer, "w", encoding="utf-8")
    return open(folder / "console", "w", encoding=kind)


@pytest.mark.parametrize("kind", ["full", "closed pipe", "ascii", "latin-1"])
def test_work_that_outlives_its_console_loses_the_lines_and_nothing_else(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = {name: lost(kind, tmp_path) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    outlive_console()
    for number, stream in enumerate((sys.stdout, sys.stderr)):
        print(f"{number} ä \u2192 \udcff", file=stream)
        stream.flush()  # as Python does at the end of a process
    if (tmp_path / "console").exists():
        assert "\\u2192 \\udcff" in (tmp_path / "console").read_text(encoding=kind)


def test_a_console_that_works_shows_what_it_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "console", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("before, ", end="")
        outlive_console()
        print("ä" * 100_000)
        assert not sys.stdout.isatty()
        assert (tmp_path / "console").read_text(encoding="utf-8") == f"before, {'ä' * 100_000}\n"


def test_descriptors_that_were_closed_before_the_start_swallow_what_is_printed(tmp_path: Path) -> None:
    program = (
        "from shards.console import outlive_console; import faulthandler, os, sys; outlive_console()\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    print('lost'); print('lost', file=sys.stderr); os.write(2, b'lost'); faulthandler.dump_traceback_later(60); file.write('kept')"
    )
    closed = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", closed, sys.executable, program, str(tmp_path / "file")], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "kept"


def test_a_stream_that_is_no_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    outlive_console()
    assert sys.stdout is stream


@pytest.mark.parametrize(("kind", "said"), [("full", "error: stdout can't be written (No space left on device)"), ("closed pipe", "")])
@pytest.mark.parametrize("length", [1, 100_000], ids=["at the end", "meanwhile"])
def test_output_that_can_not_be_written_is_one_line_and_exit_code_1(
    kind: str, said: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = lost(kind, tmp_path)
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code(lambda: print("x" * length) or 0, "Nothing was changed") == 1  # type: ignore[func-returns-value]
    stream.flush()
    assert capsys.readouterr().err.startswith(said)


def test_an_error_that_is_not_of_the_console_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError("the disk")

    with open(tmp_path / "console", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="the disk"):
            exit_code(fail, "Nothing was changed")
