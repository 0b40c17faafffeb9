"""Which picture goes into which shard: a pure function of the listing, the seed and the settings.

Pictures are laid out in one seeded random order and cut into shards, so that a source sorted by class does not give shards of one class.
The key of a sample is its place in that order: unique, without a dot (where WebDataset splits names), the same however many are rejected.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from shards import keyed
from shards.build.picture import PictureRules, encoder
from shards.build.sources import Entry, Listing
from shards.errors import ShardError

FORMAT = 1  # raise it when the same pictures and settings would give other bytes
_KEY_DIGITS = 9
_ORDER = 0x5348415244  # keeps this permutation apart from those of the epochs, which are drawn from the same generator


@dataclass(frozen=True)
class PlanSettings:
    """What decides the bytes of a data set, besides the pictures.

    Attributes:
        picture: what is done to every picture.
        shard_size: pictures a shard.
        seed: of the order.
        prefix: shards are named `{prefix}-{index:06d}.tar`.

    Raises:
        ShardError: a value outside its range.
    """

    picture: PictureRules = field(default_factory=PictureRules)
    shard_size: int = 2048
    seed: int = 0
    prefix: str = "shard"

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= 10_000_000:
            raise ShardError(f"shard_size {self.shard_size} is not between 1 and 10000000")
        if not 0 <= self.seed < 2**63:
            raise ShardError(f"seed {self.seed} is not between 0 and 2**63-1")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}", self.prefix):
            raise ShardError(f"prefix {self.prefix!r}: use letters, digits, '-' and '_' (at most 61 of them)")


@dataclass(frozen=True)
class ShardTask:
    """Everything that one shard is made of. Can be pickled, and run anywhere that reads the source and writes the destination.

    Attributes:
        index: place of the shard in the plan.
        shard: name of the shard.
        entries: pictures in the order of the shard.
        keys: their keys.
        picture: what is done to each.
        digest: differs between tasks that may write different bytes.
    """

    index: int
    shard: str
    entries: tuple[Entry, ...]
    keys: tuple[str, ...]
    picture: PictureRules
    digest: str


class Plan:
    """The shards that a listing becomes."""

    def __init__(self, listing: Listing, settings: PlanSettings) -> None:
        self.listing = listing
        self.settings = settings
        self._order = keyed.permutation(len(listing), settings.seed, _ORDER)
        self._key_digits = max(_KEY_DIGITS, len(str(len(listing) - 1)))
        self._words = json.dumps(asdict(settings), sort_keys=True)
        # other versions of the encoder may give other bytes: such shards are made again, but the data set stays the same one
        self._task_words = f"{FORMAT}\0{encoder() if settings.picture.resize else 'as they are'}\0{self._words}"

    def __len__(self) -> int:
        return math.ceil(len(self.listing) / self.settings.shard_size)

    def __iter__(self) -> Iterator[ShardTask]:
        return (self.task(index) for index in range(len(self)))

    @property
    def digest(self) -> str:
        """Differs between plans that may give different data sets; the place of the source is no part of it."""
        return hashlib.sha256(f"{FORMAT}\0{self._words}\0".encode() + self.listing.digest()).hexdigest()

    def shard_name(self, index: int) -> str:
        """Name of one shard."""
        return f"{self.settings.prefix}-{index:06d}.tar"

    def task(self, index: int) -> ShardTask:
        """The task that writes one shard."""
        start = index * self.settings.shard_size
        places = self._order[start : start + self.settings.shard_size]
        entries = tuple(self.listing[int(place)] for place in places)
        keys = tuple(f"{start + step:0{self._key_digits}d}" for step in range(len(entries)))
        table = hashlib.sha256(f"{self._task_words}\0{index}\0{keys[0]}".encode())
        for entry in entries:
            table.update(repr((entry.name, entry.label, entry.label_id, entry.path, entry.offset, entry.length)).encode())
        return ShardTask(index, self.shard_name(index), entries, keys, self.settings.picture, table.hexdigest())
