"""The page of launch/inpaint.py, served by a real server on a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.evaluation.painter import read_painter
from pipeline.evaluation.picture.server import PageSettings, RunningPage


@contextmanager
def served(run: Path, **settings: int) -> Iterator[str]:
    """Serves the page of a run; gives its address."""
    page = RunningPage(read_painter(str(run)), PageSettings(**{"max_pixels": 10_000_000, **settings}))
    thread = threading.Thread(target=page.run)
    thread.start()
    try:
        yield page.url
    finally:
        page.stop()
        thread.join(60)
        assert not thread.is_alive()
