"""Lines for people about the samples of indexed tars: what was left out or chosen, and what may help.

A manifest keeps no such facts of the tars that were known before, so the lines about files and pictures tell of the tars that a run read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shards.adopt.records import Done
from shards.counting import counted
from shards.dataset.index import DOTS, FORMAT, NO_PICTURE, PICTURE_EXTENSIONS
from shards.dataset.manifest import Manifest

_SHOWN = 5
_QUOTED = re.compile(r"'([^']+)'")


def advice(rejected: Iterable[tuple[str, str, str]]) -> str:
    """Returns what may help with samples that were left out, by the reasons of the first of them; empty where the reasons say it all.

    Args:
        rejected: (key, tar, reason) of samples.
    """
    reasons = [reason for _, _, reason in rejected]
    if any("class number" in reason for reason in reasons):
        return "If labels are not needed, or are not numbers, leave them out with --labels none"
    if any(DOTS in reason for reason in reasons):
        return (
            "If the dots belong to the names, end keys at the last dot: --key-ends last-dot. If samples have several files, name the "
            "picture with its dots: --picture left.jpg"
        )
    found = [_QUOTED.findall(reason.partition(NO_PICTURE)[2]) for reason in reasons if NO_PICTURE in reason]
    if any(extension.rpartition(".")[2] in PICTURE_EXTENSIONS for extensions in found for extension in extensions):
        return "Say which extensions the pictures have, those to prefer first: --picture 'jpg;jpeg;png'"
    if found:
        return f"Pictures are read that end in {', '.join(PICTURE_EXTENSIONS)}: convert others, or name another ending with --picture"
    return ""


def hidden_files(done: Sequence[Done]) -> str:
    """Returns a line about the files in tars that are hidden or a tool's; empty where there is none."""
    files, names = sum(one.hidden for one in done), sorted({name for one in done for name in one.hidden_names})
    more = ", ..." if len(names) > _SHOWN or any(one.hidden > len(one.hidden_names) for one in done) else ""
    return f"hidden or of a tool, left out of {_tars(done)}: {counted(files, 'file')} ({', '.join(names[:_SHOWN])}{more})" if files else ""


def several_pictures(done: Sequence[Done]) -> str:
    """Returns a line about the samples that have several pictures; empty where there is none."""
    several, order = sum(one.several for one in done), ", ".join(PICTURE_EXTENSIONS)
    what = f"samples with several pictures in {_tars(done)}"
    return f"{what}, the first of {order} taken (else name it with --picture): {several:,}" if several else ""


def newer_rules(old: Manifest | None, new: Manifest) -> str:
    """Returns a line about the tars of the previous manifest that give other samples by newer rules; empty where there is none."""
    if old is None or old.settings.get("index_format") == FORMAT:
        return ""
    before = {(record.name, record.size): record for record in old.records}
    pairs = [(before[record.name, record.size], record) for record in new.records if (record.name, record.size) in before]
    if all(then.index_sha256 == now.index_sha256 for then, now in pairs):
        return ""
    more = sum(now.count - then.count for then, now in pairs)
    change = f"{counted(abs(more), 'sample')} {'more' if more >= 0 else 'less'}"
    return (
        f"{change} by newer rules than those of the manifest before: other ids. Runs that began with it need it, and stop at this one; to "
        "have both, name another folder for the new one with --to"
    )


def _tars(done: Sequence[Done]) -> str:
    return "the tars" if all(one.new for one in done) else "the tars that were read now"
