"""The splits of tars: those of the split that was asked for, and the refusal to index several as one set unasked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from shards.adopt.records import Done
from shards.dataset.manifest import Manifest
from shards.errors import ShardError, SourceError
from shards.layout import ALL, Splits, mixture, refusal, split_in, wanted_kind
from shards.tar.listing import TarListing
from shards.urls import join, redacted

SPLIT = "split"
"""Setting of a manifest: the split that was asked for."""
PLACES = "split_places"
"""Setting of a manifest: the places of splits in the keys of each tar that has such keys."""


def take_split(listing: TarListing, wanted: str | None) -> tuple[TarListing, str]:
    """Takes the tars of one split. Splits that the URLs of the listing name were asked for.

    Args:
        listing: tars of the URLs.
        wanted: split to take, `all` for all of them together; None takes all and refuses splits that were not asked for.

    Returns:
        The listing, and a line for people about the tars that are left out; empty where none is.

    Raises:
        SourceError: the tars are of several splits, or none is of the wanted one.
    """
    splits = Splits((_stem(tar.name) for tar in listing.tars), alone=wanted is not None)
    kinds = [splits.of(_stem(tar.name))[0] for tar in listing.tars]
    counts = Counter(kinds)
    shown = redacted(listing.url)
    if wanted is None:
        named = (part for text in listing.asked for part in re.split(r"[/{,}]", text))
        asked = {found[0] for part in named if (found := split_in(part)) is not None}
        if len(counts) > 1 and not asked.issuperset(counts):
            raise SourceError(f"{shown}: {refusal(counts, 'tars')}")
        return listing, ""
    kind = wanted_kind(wanted)
    if kind == ALL:
        return listing, ""
    if kind not in splits.kinds:
        there = mixture(counts.items()) if splits.kinds else "no folder and no tar is named train, val, test or the like"
        raise SourceError(f"{shown}: has no split {wanted} ({there})")
    taken = tuple(tar for tar, each in zip(listing.tars, kinds, strict=True) if each == kind)
    del counts[kind]
    return replace(listing, tars=taken), f"tars of other splits, left out: {mixture(counts.items())}" if counts else ""


def split_places(folders: Iterable[str]) -> tuple[str, ...]:
    """Returns the parts of folders that end in the name of a split, e.g. `a/train` of `a/train/cat`, sorted; one of those beside each
    other that `Splits` takes for the same split, such as `test_0001` and `test_0002`."""
    found: dict[tuple[str, object], str] = {}
    for folder in sorted(folders):
        parts = folder.split("/")
        for at, part in enumerate(parts):
            if (kind := split_in(part)) is not None:
                found.setdefault(("/".join(parts[:at]), kind), "/".join(parts[: at + 1]))
    return tuple(sorted(found.values()))


def places_in(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Returns the places of splits in the keys of each tar, from the settings of a manifest; tars without one are left out."""
    found = manifest.settings.get(PLACES)
    return {name: tuple(map(str, places)) for name, places in found.items()} if isinstance(found, dict) else {}


def refuse_other_split(old: Manifest, wanted: str, left_out: Iterable[str]) -> None:
    """Refuses to replace the manifest of one split by that of another.

    Args:
        old: manifest that is there.
        wanted: split to take.
        left_out: names of the tars of other splits.

    Raises:
        ShardError: the manifest was made of another split, or of tars that are now left out.
    """
    made = old.settings.get(SPLIT)
    other = wanted_kind(made) != wanted_kind(wanted) if isinstance(made, str) else False
    if other or not {record.name for record in old.records}.isdisjoint(left_out):
        raise ShardError(
            f"{redacted(old.url)}: holds the manifest of {f'the split {made}' if isinstance(made, str) else 'tars of other splits'}, which "
            f"--split {wanted} would replace. Name another folder with --to"
        )


def refuse_mixed_keys(listing: TarListing, done: Sequence[Done]) -> None:
    """Raises SourceError if the keys of the tars that were read lie in folders of several splits, because a tar is indexed as a whole."""
    kinds = Splits(place for one in done for place in one.splits).kinds
    if kinds:
        first = next(one.shard.name for one in done if one.splits)
        raise SourceError(
            f"{redacted(join(listing.url, first))}: the keys in the tars lie in folders of several splits ({', '.join(kinds)}), which are "
            "not mixed unasked. Take all together with --split all, or make tars of one split each"
        )


def _stem(name: str) -> str:
    return name[: -len(".tar")]
