"""Process 1 of a container: a run says at its start that no SIGTERM reaches it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.training.ranks.launcher import deaf_first_process

NOTHING, TERM = 0, 1 << (signal.SIGTERM - 1)
KEYBOARD = 1 << (signal.SIGINT - 1)


def processes(folder: Path, starters: list[tuple[int, str, int, int]]) -> Path:
    """Makes /proc as this process would find it: number, name, caught and blocked signals of its parent, of the parent's parent, ..."""
    own, parents = os.getpid(), [number for number, *_ in starters]
    for number, parent, name, caught, blocked in [
        (own, parents[0], "python", TERM, 0),
        *((number, parent, *rest) for (number, *rest), parent in zip(starters, [*parents[1:], 0], strict=True)),
    ]:
        (folder / str(number)).mkdir()
        text = f"Name:\t{name}\nUmask:\t0022\nPPid:\t{parent}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n"
        (folder / str(number) / "status").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("starters", "launched"),
    [
        ([(1, "accelerate", KEYBOARD, NOTHING)], True),
        ([(7, "accelerate", KEYBOARD, NOTHING), (1, "sh", NOTHING, NOTHING)], True),
        ([(1, "bash", KEYBOARD, NOTHING)], False),
    ],
    ids=["the launcher", "a shell that started the launcher", "a shell that started the rank"],
)
def test_a_first_process_that_does_not_answer_sigterm_is_named(
    starters: list[tuple[int, str, int, int]], launched: bool, tmp_path: Path
) -> None:
    warning = deaf_first_process(processes(tmp_path, starters), launched)
    assert warning.startswith(f"warning: process 1 of this container ({starters[-1][1]}) does not answer SIGTERM")
    assert "python launch/pretrain.py" in warning


@pytest.mark.parametrize(
    ("starters", "launched"),
    [
        ([(1, "accelerate", TERM, NOTHING)], True),
        ([(7, "accelerate", NOTHING, NOTHING), (1, "tini", NOTHING, TERM)], True),
        ([(8, "bash", NOTHING, NOTHING), (7, "sshd", NOTHING, NOTHING), (1, "sleep", NOTHING, NOTHING)], True),
        ([(8, "bash", NOTHING, NOTHING), (1, "sleep", NOTHING, NOTHING)], False),
        ([(0, "nothing", NOTHING, NOTHING)], False),
    ],
    ids=[
        "a launcher of ranks, which answers",
        "an init, which waits for signals",
        "another's process",
        "a shell between",
        "none: it is 1 itself",
    ],
)
def test_all_others_are_no_warning(starters: list[tuple[int, str, int, int]], launched: bool, tmp_path: Path) -> None:
    assert deaf_first_process(processes(tmp_path, starters), launched) == ""


def test_a_system_without_such_a_folder_is_no_warning(tmp_path: Path) -> None:
    assert deaf_first_process(tmp_path / "none") == ""
