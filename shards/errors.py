"""Errors that a person is shown, and those of data sets. Every message names what is wrong, where, and what to do next.

Needs nothing, so that everything here may import it.
"""

from __future__ import annotations


class ExplainedError(Exception):
    """An error whose message is all that a person needs: programs print it in one line, without a traceback, and exit with 1."""


class ShardError(ExplainedError):
    """Anything wrong with a source, a shard, an index or a manifest."""


class SourceError(ShardError):
    """The pictures to build from can't be listed or read."""


class StoreError(ShardError):
    """A URL can't be read or written: missing bucket, wrong key, no permission, no space."""


class StoreOptionsError(StoreError):
    """An option of a store, or its endpoint, can't be used, which no retry mends."""


class ShardCorrupt(ShardError):
    """Stored bytes are not what the index or the manifest says they are."""


class ManifestMismatch(ShardError):
    """Manifest, index and shards don't belong together, or the manifest can't be read."""


class ShapesError(ShardError):
    """A bank of shapes, or the label pictures that it is traced from, can't be read, written or used."""
