"""The format of a run folder: the names of its files, its JSON lines, and the rule of which steps count.

The training writes a run folder, the ledger and the report read one. This module is all that they share, and it needs the standard
library alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

EVENTS, HISTORY, QUARANTINE = "events.jsonl", "history.jsonl", "quarantine.jsonl"
"""JSON lines: one line an event of an attempt; one line a step; one line an unreadable sample."""
EVALUATION = "evaluation.jsonl"
"""JSON lines: one line an evaluation on held-back pictures, the random start at step 0 first."""
BASELINES = {"constant": "one colour", "visible_mean": "visible mean"}
"""Baselines of an evaluation of paintings, and their names for a person."""
GUESSES = {"chance": "chance", "largest_class": "the largest class alone"}
"""Baselines of an evaluation of named classes, and their names for a person."""
FEWEST_PICTURES = 8
"""Held-back pictures; fewer say nothing of maps, spreads and features."""
MOST_DEAD = 0.5
"""Fraction of a layer's maps; a run with more dead ones is reported."""
LEAST_OUTPUT_SPREAD, LEAST_FEATURE_SPREAD, LEAST_FEATURE_DIMENSIONS = 0.05, 0.01, 1.5
"""Fields of an evaluation below which a run is reported."""
SETTINGS = "config.yaml"
"""The settings of the newest attempt."""
PICTURES, CHECKPOINTS, STACKS, TARGETS = "pictures", "checkpoints", "stacks", "targets"
"""Folders: picture grids; checkpoints, unless they go to another URL; stacks of ranks that hung; target files for Prometheus."""
INPAINTING = "inpainting"
"""Folder of tables of inpainting, a folder a step; the names of its folders are made by `step_name`."""
TABLE, TABLE_GRID = "table.json", "grid.png"
"""Files of a table of inpainting: every figure and fact, and the fills of the first pictures."""
GRID_TEXT = "context-encoder-grid"
"""Key of the text in a picture grid's PNG: the places of its cells as JSON, so that one picture can be cut out of it."""
BATCH_ATTEMPTS = "slurm/attempts.jsonl"
"""JSON lines: the beginning and the end of every attempt, as the batch script saw them."""
COMMIT = "checkpoint.json"
"""The file that makes a folder a checkpoint; it is written last."""
LONGEST_LINE = 1 << 24
"""Bytes; a longer line is none that a run writes."""
_STEP_NAME = re.compile(r"step_(\d+)")


def step_name(step: int) -> str:
    """`step_000001000`: nine digits, so that names sort by step. Pictures and checkpoints are named like this."""
    return f"step_{step:09d}"


def step_of_name(name: str) -> int | None:
    """The step in a name that `step_name` made; None for any other name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def least_accuracy(guess: float, pictures: int) -> float:
    """Returns the accuracy above which a network does better than a guess: two standard errors above that of the guess. It is 1 or more
    where luck would explain even a network without an error.

    Args:
        guess: accuracy of the guess, a fraction.
        pictures: number of pictures that are judged, at least 1.
    """
    return guess + 2 * math.sqrt(max(0.0, guess * (1 - guess)) / pictures)


def better_than_guess(accuracy: float, guess: float, pictures: int) -> bool | None:
    """Returns True for an accuracy above that of a guess by more than luck, and False for any other, NaN included. None where the pictures
    can't tell: fewer than FEWEST_PICTURES, or all of one class, or so few that luck would explain any accuracy above the guess.

    Args:
        accuracy: accuracy of the network, a fraction.
        guess: accuracy of the guess, a fraction.
        pictures: number of pictures that are judged.
    """
    if pictures < FEWEST_PICTURES or guess >= 1:
        return None
    least = least_accuracy(guess, pictures)
    return None if accuracy > guess and least >= 1 else accuracy > least


def undecided(guess: float, pictures: int) -> str:
    """Says for a person why `better_than_guess` gives None."""
    one_class = guess >= 1 and pictures >= FEWEST_PICTURES
    return "all pictures are of one class, so a guess can't be beaten" if one_class else "too few pictures to tell"


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON of a value, in which numbers that are not finite are null, because JSON has no words for them: strict readers refuse a file
    with NaN in it.

    Args:
        value: dicts, lists, numbers and texts.
        indent: spaces of a level; None writes one line.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False, indent=indent)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nans(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `history.jsonl` or `evaluation.jsonl` with NaN for the figures that are null because they were not finite. `probe` is null
    where there is no probe, and stays so."""
    restored = {key: math.nan if value is None and key != "probe" else value for key, value in row.items()}
    return {key: with_nans(value) if isinstance(value, Mapping) else value for key, value in restored.items()}


class Lines:
    """The rows of a file of JSON lines, in order, one line in memory at a time. Lines that are damaged are left out.

    Args:
        path: path of the file; a file that does not exist has no rows.
        longest: bytes of the longest line that is read; a longer one counts as damaged.

    Attributes:
        missing: whether there is no such file.
        damaged: number of lines that are no JSON objects.
        cut_short: whether the last line has no end, because it is being written or a crash came first. It does not count as damaged.

    Raises:
        OSError: while iterating, the file can't be read.
    """

    def __init__(self, path: Path, longest: int = LONGEST_LINE) -> None:
        self.path, self._longest = path, longest
        self.missing, self.damaged, self.cut_short = not path.is_file(), 0, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.damaged, self.cut_short = 0, False
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except (FileNotFoundError, NotADirectoryError):
            self.missing = True
            return
        with file:
            while line := file.readline(self._longest):
                ended = line.endswith(b"\n")
                if len(line) == self._longest and not ended:
                    while (rest := file.readline(self._longest)) and not rest.endswith(b"\n"):
                        pass
                    self.damaged += 1
                elif (row := _row(line)) is not None:
                    yield row
                elif ended:
                    self.damaged += bool(line.strip())
                else:
                    self.cut_short = True


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines, for files that stay small; see `Lines`.

    Raises:
        OSError: the file can't be read.
    """
    return list(Lines(path))


def last_counted_steps(starts: Sequence[int]) -> list[float]:
    """The last step of each attempt that counts.

    An attempt continues from a checkpoint, so it undoes every step that an earlier attempt took after that checkpoint. Hence a step counts
    exactly if no later attempt started before it, and one number for each attempt decides it, however long the history is.

    Args:
        starts: steps that were done when an attempt started, one number for each attempt, in their order.

    Returns:
        The greatest step that counts, one number for each attempt; infinite for the newest.
    """
    limits, limit = list[float](), math.inf
    for start in reversed(starts):
        limits.append(limit)
        limit = min(limit, start)
    return limits[::-1]


def last_saved_step(run: Path) -> int | None:
    """The step of the newest checkpoint event, None where there is none. An earlier event may have a higher step, because a run goes back
    behind a damaged checkpoint."""
    saved = None
    for row in Lines(run / EVENTS):
        if row.get("event") == "checkpoint" and "step" in row:
            saved = int(row["step"])
    return saved


def recorded_death(run: Path, attempt: int) -> dict[str, Any] | None:
    """Returns the event `rank_died` of an attempt, which the guard of any node wrote; None while there is none.

    Args:
        run: run folder.
        attempt: attempt of the run.
    """
    with suppress(OSError):
        for row in Lines(run / EVENTS):
            if row.get("event") == "rank_died" and row.get("attempt") == attempt:
                return row
    return None


def death(row: Mapping[str, Any]) -> str:
    """Words for the event `rank_died`: the rank, and the signal or exit code that it ended with."""
    if "signal" in row:
        how = f"was killed by {row['signal']}"
    elif "exit_code" in row:
        how = f"ended with exit code {row['exit_code']}"
    else:
        how = "died of a signal such as SIGKILL"
    return f"rank {row.get('rank')} on {row.get('node')} {how}"
