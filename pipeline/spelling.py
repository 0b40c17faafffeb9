"""The known name that is nearest to a wrong one by its spelling, for errors that suggest what was meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], listed: bool = False, prefix: str = "") -> str:
    """The end of an error about a wrong name: `. Did you mean ...?` where a known name is near, and all names if they are asked for.

    Args:
        word: wrong name.
        known: right names.
        listed: whether all right names follow.
        prefix: characters before a name on a command line, as in `--`; without them names are quoted.
    """
    names = sorted(known)
    best = min(names, key=lambda name: (_difference(word, name), len(name)), default="")
    shown = f"{prefix}{best}" if prefix else repr(best)
    end = f". Did you mean {shown}?" if best and _difference(word, best) <= max(1, len(word) * 2 // 5) else ""
    return f"{end or '.'} There are: {', '.join(names)}" if listed else end


def _difference(word: str, name: str) -> int:
    """The edits that make a name of a word. Names with dots may differ in their last part alone, for two edits where the word has dots,
    too, because people leave the section out or take another one."""
    (section, _, last), last_of_name = word.rpartition("."), name.rpartition(".")[2]
    return min(edits(word, name), edits(last, last_of_name) + (2 if section else 0))


def edits(one: str, other: str) -> int:
    """Counts the characters to insert, delete, replace or swap with their neighbour that lead from one word to another."""
    before, row = list[int](), list(range(len(other) + 1))
    for i, char in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, target in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (char != target)))
            if i > 1 and j > 1 and char == other[j - 2] and one[i - 2] == target:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]
