"""Names with a meaning of their own: folders that tools leave behind, and the splits of a data set. Names only; nothing is read.

A name beginning with a dot is hidden: `.ipynb_checkpoints`, `.Trash-1000`, or the `._` files that a Mac writes. `train` and `val` are
splits where they stand beside each other, as do `train2017` and `val2017`, or `imagenet-train-000000` and `imagenet-val-000000`. A class
that is called `train` is no split, because its neighbours are none.

Needs the standard library alone, so that everything here may import it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

ALL = "all"
"""Choice of all splits together, mixed."""
_TOOLS = (
    *("@eaDir", "@Recycle", "@Recently-Snapshot", "@tmp", "#recycle", "#snapshot"),  # network storage
    *("__MACOSX", "$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "__pycache__"),
)
_LEFT_OUT = re.compile(rf"(?:^|/)(?:\.(?!\.?(?:/|$))[^/]+|{'|'.join(map(re.escape, _TOOLS))})(?=/|$)", re.IGNORECASE)
_KINDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
    **{kind: kind for kind in ("dev", "trainval", "minival", "holdout")},
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SHOWN = 5


def left_out_part(path: str) -> str:
    """Returns a path up to its first hidden or tool part, e.g. `a/@eaDir` of `a/@eaDir/x.jpg`; an empty text without one."""
    found = _LEFT_OUT.search(path)
    return path[: found.end()] if found is not None else ""


def shown_left_out(places: Iterable[str]) -> str:
    """Returns how many hidden and tool files or folders were left out, and the names of some; an empty text for none."""
    found = list(places)
    names = sorted({place.rpartition("/")[2] for place in found})
    more = ", ..." if len(names) > _SHOWN else ""
    return f"hidden or of a tool, left out: {len(found):,} ({', '.join(names[:_SHOWN])}{more})" if found else ""


@functools.lru_cache(1 << 16)
def split_in(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Returns the split that a folder or tar is named after, and the other words of its name; None for other names.

    `imagenet-val-000000` gives `val` and (`imagenet`,).
    """
    words = [word.lower() for word in _WORD.findall(name)]
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    return (kinds[0], tuple(word for word in words if word not in _KINDS)) if len(kinds) == 1 else None


class Splits:
    """The splits that paths show: places beside each other whose names differ in the split alone.

    Args:
        paths: paths of folders, or of tars without their extension.
        alone: take a place for a split even where no other split stands beside it.

    Attributes:
        kinds: names of the splits, sorted: `train`, `val`, `test`, ...
    """

    def __init__(self, paths: Iterable[str], alone: bool = False) -> None:
        groups: dict[tuple[str, tuple[str, ...]], dict[str, set[str]]] = {}
        for path in set(paths):
            parts = path.split("/")
            for number, part in enumerate(parts):
                if (found := split_in(part)) is not None:
                    kind, others = found
                    group = groups.setdefault(("/".join(parts[:number]), others), {})
                    group.setdefault(kind, set()).add("/".join(parts[: number + 1]))
        several = [group for group in groups.values() if len(group) > 1]
        chosen = several or (list(groups.values()) if alone else [])
        self._places = {place: kind for group in chosen for kind, places in group.items() for place in places}
        self.kinds = tuple(sorted(set(self._places.values())))

    def of(self, path: str) -> tuple[str, str]:
        """Returns the split of a path, and the path up to the name of the split; two empty texts for a path outside of all splits."""
        parts = path.split("/") if self._places else []
        for number in range(1, len(parts) + 1):
            if (kind := self._places.get(place := "/".join(parts[:number]))) is not None:
                return kind, place
        return "", ""


def wanted_kind(split: str) -> str:
    """Returns the split that a person names, e.g. `val` for `validation`, or `all` in any case; the text itself where it is no split."""
    if split.lower() == ALL:
        return ALL
    found = split_in(split)
    return found[0] if found is not None else split


def mixture(counts: Iterable[tuple[str, int]]) -> str:
    """Returns the splits with their numbers of pictures or tars, for messages: `test 20, train 100`."""
    return ", ".join(f"{kind or 'outside of them'} {count:,}" for kind, count in sorted(counts))


def refusal(counts: Mapping[str, int], things: str) -> str:
    """Returns the text that refuses to mix splits unasked, and says how to ask.

    Args:
        counts: number of things of each split.
        things: plural of what is counted, e.g. `pictures`.
    """
    example = "train" if "train" in counts else max(counts)
    return (
        f"holds several splits ({things}: {mixture(counts.items())}), which are not mixed unasked. Take one with --split {example}, or all "
        "together with --split all"
    )
