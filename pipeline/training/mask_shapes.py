"""The shapes of the masks as a part of a run's identity: all ranks paste the same, and a resumed run goes on with those it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.masking import MaskSource, bank_of
from pipeline.training.ranks.world import World
from shards.errors import ShapesError

SHAPES = "shapes"
"""Name, in a checkpoint's facts, of the digest of the bank of shapes; checkpoints of versions without banks lack it."""
_REGION = "region"  # the kind of masks that has shapes


def shapes_digest(mask: MaskSource | None) -> str:
    """Returns the digest of the bank that masks take their shapes from; an empty text without a bank.

    Raises:
        ShapesError: the bank can't be read.
        StoreError: the store of the bank does not answer.
    """
    bank = bank_of(mask)
    return bank.content.digest if bank is not None else ""


def check_ranks(mask: MaskSource | None, world: World) -> None:
    """Refuses a rank that reads another bank of shapes than rank 0.

    Raises:
        ShapesError: naming both banks; also, as `shapes_digest`, for a bank that can't be read.
    """
    if (bank := bank_of(mask)) is None:
        return
    digest = bank.content.digest
    first = str(world.broadcast(digest))
    if digest != first:
        raise ShapesError(
            f"method.mask.shapes: {bank.content.url} on rank {world.rank} is the bank {digest[:16]}, and on rank 0 it is {first[:16]}. "
            "Copy the same file to every node, or give the URL of a store that all nodes read"
        )


def changed_shapes(facts: Mapping[str, Any], mask: MaskSource | None, kind: str) -> str:
    """Describes the difference between the shapes of a checkpoint and those of this attempt; an empty text if there is none.

    A bank is known by its digest, so that the same bank may lie at another URL.

    Args:
        facts: facts of the checkpoint.
        mask: source of this attempt's masks.
        kind: kind of this attempt's masks, `method.mask.kind`.
    """
    before, now, bank = str(facts.get(SHAPES, "")), shapes_digest(mask), bank_of(mask)
    if before == now:
        return ""
    settings = facts["config"]["method"].get("mask") or {}
    began = settings.get("kind", _REGION)
    url = bank.content.url if bank is not None else ""
    setting, to = ("method.mask.kind", repr(began)) if began != kind else ("method.mask.shapes", "the shapes that the run began with")
    return (
        f"was trained with {_named(began, before, settings.get('shapes', ''))}, and {setting} gives {_named(kind, now, url)} here. "
        f"Set {setting} to {to}"
    )


def _named(kind: str, digest: str, url: str) -> str:
    """Names masks by their shapes, or by their kind if it has none."""
    if kind != _REGION:
        return f"masks of the kind {kind!r}"
    return f"masks of the bank {digest[:16]}{f' ({url})' if url else ''}" if digest else "masks of generated shapes"
