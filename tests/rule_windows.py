"""Prometheus's rules with every duration shortened by one factor: days of an operator's life in a minute of a test, by the same rules.

The convention that makes it one place: in a rule file a duration is `for`, a range or offset as [5m], or a number of seconds written as
"15 * 60". What the shortened rules make is called `short:...` and `Short...`, so that one server can have both.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from launch.local.prometheus import FOLDER

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RANGE = re.compile(r"(\[|\boffset )(\d+)([smhd])\b")
_NUMBER = re.compile(r"\b(\d+) \* 60\b")


def rule_files() -> list[Path]:
    """Rule files of the repository."""
    return sorted((FOLDER / "rules").glob("*.yml"))


def rules(path: Path) -> list[dict[str, Any]]:
    """Every rule of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def shortened(text: str, factor: float) -> str:
    """An expression, or an annotation with queries in it, whose durations are `factor` of what they are."""
    text = _RANGE.sub(lambda found: f"{found[1]}{duration(found[2] + found[3], factor)}", text)
    return _NUMBER.sub(lambda found: f"{float(found[1]) * 60 * factor:g}", text)


def duration(text: str, factor: float) -> str:
    """A duration as Prometheus writes it."""
    return f"{round(1000 * factor * int(text[:-1]) * _SECONDS[text[-1]])}ms"


def shorten(folder: Path, factor: float) -> list[Path]:
    """Writes the repository's rule files into a folder, all durations shortened and all names changed; returns their paths."""
    written = []
    for path in rule_files():
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            group["rules"] = [_shorten(rule, factor) for rule in group["rules"]]
        written.append(folder / path.name)
        text = yaml.safe_dump(content, sort_keys=False)
        written[-1].write_text(text.replace("context_encoder:", "short:").replace("ContextEncoder", "Short"))
    return written


def _shorten(rule: dict[str, Any], factor: float) -> dict[str, Any]:
    changed = {**rule, "expr": shortened(rule["expr"], factor)}
    if "alert" in rule:
        changed["for"] = duration(rule["for"], factor)
        changed["annotations"] = {key: shortened(text, factor) for key, text in rule["annotations"].items()}
    return changed
