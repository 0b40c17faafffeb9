"""Counts in sentences for people: `1 shard`, `2 shards`, `1,281,167 pictures`.

Needs the standard library alone, so that everything here may import it.
"""

from __future__ import annotations

import re


def counted(number: int, noun: str, plural: str = "") -> str:
    """Writes a number with its noun, in the singular for 1 and in the plural for all other numbers.

    Args:
        number: number of things.
        noun: noun in the singular, possibly with words behind it that change with the number: `sample is`.
        plural: noun in the plural; formed by the rules of spelling if not given.
    """
    return f"{number:,} {noun if number == 1 else plural or _plural(noun)}"


def _plural(noun: str) -> str:
    if re.search(r"(s|x|ch|sh)$", noun):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"
