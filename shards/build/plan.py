"""The plan of a build: which picture goes into which shard, a pure function of the listing, the seed and the settings.

Pictures are put into one seeded random order and cut into shards, so that a source sorted by class does not give shards of one class. The
key of a sample is its position in that order. Keys are unique, have no dot (at which WebDataset splits names), and do not depend on which
pictures are rejected.
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

FORMAT = 1  # to be raised when the same pictures and settings would give other bytes
_KEY_DIGITS = 9
_ORDER = 0x5348415244  # separates this permutation from those of the epochs, which the same generator draws


@dataclass(frozen=True)
class PlanSettings:
    """The settings that decide the bytes of a data set, besides the pictures.

    Attributes:
        picture: treatment of every picture.
        shard_size: number of pictures per shard.
        seed: seed of the order.
        prefix: first part of the shards' names, `{prefix}-{index:06d}.tar`.

    Raises:
        ShardError: a value is outside its range.
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
    """All that one shard is made of. A task can be pickled, and runs on any machine that reads the source and writes the destination.

    Attributes:
        index: number of the shard in the plan, from 0.
        shard: name of the shard.
        entries: pictures in the order of the shard.
        keys: keys of the pictures, in the same order.
        picture: treatment of each picture.
        digest: text that differs between tasks that may write different bytes.
    """

    index: int
    shard: str
    entries: tuple[Entry, ...]
    keys: tuple[str, ...]
    picture: PictureRules
    digest: str


class Plan:
    """The tasks that a listing is cut into."""

    def __init__(self, listing: Listing, settings: PlanSettings) -> None:
        self.listing = listing
        self.settings = settings
        self._order = keyed.permutation(len(listing), settings.seed, _ORDER)
        self._key_digits = max(_KEY_DIGITS, len(str(len(listing) - 1)))
        self._words = json.dumps(asdict(settings), sort_keys=True)
        # another encoder may give other bytes, so its shards are made again; the data set counts as the same one
        self._task_words = f"{FORMAT}\0{encoder() if settings.picture.resize else 'as they are'}\0{self._words}"

    def __len__(self) -> int:
        return math.ceil(len(self.listing) / self.settings.shard_size)

    def __iter__(self) -> Iterator[ShardTask]:
        return (self.task(index) for index in range(len(self)))

    @property
    def digest(self) -> str:
        """Text that differs between plans that may give different data sets; the URL of the source is no part of it."""
        return hashlib.sha256(f"{FORMAT}\0{self._words}\0".encode() + self.listing.digest()).hexdigest()

    def shard_name(self, index: int) -> str:
        """Returns the name of one shard."""
        return f"{self.settings.prefix}-{index:06d}.tar"

    def task(self, index: int) -> ShardTask:
        """Returns the task that writes one shard."""
        start = index * self.settings.shard_size
        places = self._order[start : start + self.settings.shard_size]
        entries = tuple(self.listing[int(place)] for place in places)
        keys = tuple(f"{start + step:0{self._key_digits}d}" for step in range(len(entries)))
        table = hashlib.sha256(f"{self._task_words}\0{index}\0{keys[0]}".encode())
        for entry in entries:
            table.update(repr((entry.name, entry.label, entry.label_id, entry.path, entry.offset, entry.length)).encode())
        return ShardTask(index, self.shard_name(index), entries, keys, self.settings.picture, table.hexdigest())
