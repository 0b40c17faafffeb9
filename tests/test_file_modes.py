"""Every file that the programs write obeys the umask, but credentials and what belongs to one user alone."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

NARROWER = {
    "launch/__main__.py": {"mkstemp"},  # the launcher's own text, in a folder that all users share
    "launch/local/object_store.py": {"0o600"},  # the keys of the store
    "monitoring/endpoint/rank_socket.py": {"0o700"},  # the folder that decides who may ask the ranks
    "pipeline/stream/read/cache_folder.py": {"0o700"},  # the folder of one user in a $TMPDIR that all share
}
"""Files of the source that keep something from other users, and the modes that they give."""


@pytest.mark.parametrize("package", ["shards", "pipeline", "monitoring", "launch"])
def test_no_mode_is_narrower_than_the_umask_makes_it(package: str) -> None:
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        modes = set(re.findall(r"(?:os\.open|mkdir|chmod|touch)\(.*?\b(0o[0-7]{3})\b", text)) - {"0o666", "0o777"}
        modes |= set(re.findall(r"\bmkstemp|NamedTemporaryFile|\bsave_file\b", text))  # they make files of mode 0600
        if modes:
            found[name] = modes
    assert found == {name: modes for name, modes in NARROWER.items() if name.startswith(f"{package}/")}
