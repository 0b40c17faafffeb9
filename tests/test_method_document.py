"""Every fact of the method in docs/method.md has a setting that its recipe takes, or a constant, and a test."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from pipeline import recipes
from pipeline.config import Config, DataConfig, check
from tests.conftest import ROOT

METHOD = (ROOT / "docs" / "method.md").read_text()


@pytest.mark.parametrize("recipe", ["features", "inpainting"])
def test_every_fact_has_its_setting_or_constant_and_its_test(recipe: str) -> None:
    section = METHOD.partition(f"\n## Recipe `{recipe}`\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in section.splitlines() if row.startswith("| ")]
    facts = [row for row in rows if len(row) == 4][1:]
    assert len(facts) > 20
    for fact, _, place, test in facts:
        assert re.search(r"`(--|pipeline/|python -m)", place), fact
        assert "`tests/" in test or test.startswith("the same"), fact


@pytest.mark.parametrize("recipe", ["features", "inpainting"])
def test_every_setting_is_taken_with_its_value(recipe: str) -> None:
    section = METHOD.partition(f"\n## Recipe `{recipe}`\n")[2].partition("\n## ")[0]
    found = re.findall(r"`(--(?:method|training|data|schedule)\.[^`]+)`", section)
    assert len(found) > 15
    for words in found:
        config: Any = Config(recipes.SETTINGS[recipe](), recipe, data=DataConfig("x"))
        for setting in words.removeprefix("--").split(" --"):
            name, *values = setting.split()
            read = [yaml.safe_load(value.replace("e-", ".0e-")) for value in values]
            config = changed(config, name.split("."), read[0] if len(read) == 1 else read)
        check(config)


def changed(tree: Any, name: list[str], value: object) -> Any:
    """The tree with another value of one setting."""
    first, *rest = name
    return dataclasses.replace(tree, **{first: changed(getattr(tree, first), rest, value) if rest else value})
