"""The error of everything that fills holes."""

from __future__ import annotations

from shards.errors import ExplainedError


class FillError(ExplainedError):
    """A hole can't be filled, or a way to fill it is not here. The message names the picture or the package, and what to do."""
