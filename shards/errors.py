"""What can be wrong with a data set. Every message names what, where, and what to do next."""

from __future__ import annotations


class ShardError(Exception):
    """Anything wrong with a source, a shard, an index or a manifest."""


class SourceError(ShardError):
    """The pictures to build from can't be listed or read."""


class StoreError(ShardError):
    """A URL can't be read or written: missing bucket, wrong key, no permission, no space."""


class ShardCorrupt(ShardError):
    """Stored bytes are not what the index or the manifest says they are."""


class ManifestMismatch(ShardError):
    """Manifest, index and shards don't belong together, or the manifest can't be read."""
