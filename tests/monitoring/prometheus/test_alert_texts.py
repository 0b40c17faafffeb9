"""Texts of the alerts as promtool renders them: a clause is whole, or it is not there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.local.prometheus import FOLDER
from tests.rule_windows import rule_files

RUN = 'run="r",rank="0",node="a"'
EMPTY = re.compile(r":\s*(?:[;.,]|$)|\b(?:at|of|in|by|to|and) ?[;.,]|\bon ?[;,]|;\s*$|: *[a-z ]+: |\s[;.,]|  ")
"""A clause that announces something and has nothing to say: `pushed last:`, `by rank 0 on; the third`, `Longest: a stopped rank`."""


def series(name: str, values: str, labels: str = RUN) -> dict[str, str]:
    return {"series": f"{name}{{{labels}}}", "values": values}


ALONE = series("context_encoder_world_size", "2x90")
FINDING = 'run="r",rank="0",node="a",problem='
ABSENT = [
    (
        "NoBetterThanBaseline",
        [series("context_encoder_not_learning", "1x90", f'{FINDING}"baseline"')],
        "A network that learns is better than every baseline.",
    ),
    (
        "NoBetterThanBaseline",
        [
            series("context_encoder_not_learning", "1x90", f'{FINDING}"baseline"'),
            series("context_encoder_held_back_absolute_error_ratio", "NaN+0x90", f'{RUN},of="network"'),
            series("context_encoder_held_back_accuracy_ratio", "0.11x90", f'{RUN},of="network"'),
            series("context_encoder_held_back_accuracy_ratio", "0.125x90", f'{RUN},of="chance"'),
        ],
        "Held-back accuracy, the best first: chance 12.5%; network 11%. A network that learns is better than every baseline.",
    ),
    (
        "DeadMaps",
        [series("context_encoder_not_learning", "1x90", f'{FINDING}"dead_maps"')],
        "The network learns with the others alone.",
    ),
    (
        "ConstantOutput",
        [series("context_encoder_not_learning", "1x90", f'{FINDING}"constant_output"'), series("context_encoder_evaluation_step", "7x90")],
        "Evaluated at step 7, by rank 0 on a. The network does not use what it sees.",
    ),
    (
        "CollapsedFeatures",
        [series("context_encoder_not_learning", "1x90", f'{FINDING}"collapsed_features"')],
        "The encoder tells pictures apart by little else.",
    ),
    (
        "DiscriminatorCollapse",
        [series("context_encoder_collapsed", "1x90", f'{RUN},player="discriminator"')],
        "Its losses look like a collapse, on every rank alike. The generator learns from the reconstruction loss alone.",
    ),
    (
        "DataStarvation",
        [series("context_encoder_data_starving", "1x90"), ALONE],
        "Ranks that starve: 1 of 2.",
    ),
    (
        "TargetDown",
        [series("up", "0x90", 'job="context_encoder",run="r",node="a",instance="a:1"')],
        "It did not end in good order, and was not started again. In its target files, 5 at most: a:1 (node a).",
    ),
    (
        "TargetDown",
        [series("push_time_seconds", "0x90", 'job="context_encoder",run="r",node="a",rank="0"')],
        "It did not end in good order, and was not started again. Pushed last: 1h 10m 0s ago by node a, rank 0.",
    ),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(("alert", "present", "text"), ABSENT, ids=[f"{alert}-{number}" for number, (alert, _, _) in enumerate(ABSENT)])
def test_a_clause_without_figures_is_left_out(alert: str, present: list[dict[str, str]], text: str, tmp_path: Path) -> None:
    assert not EMPTY.search(text)
    name = f"ContextEncoder{alert}"
    rules = [rule for group in yaml.safe_load((FOLDER / "rules" / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    rule = next(rule for rule in rules if rule["alert"] == name)
    summary = rule["annotations"]["summary"].replace("{{ $labels.run }}", "r").replace("{{ $labels.player }}", "discriminator")
    player = {"player": "discriminator"} if "player" in summary or "discriminator" in summary else {}
    annotations = {"summary": summary, "description": text, "runbook_url": rule["annotations"]["runbook_url"]}
    fired = {"exp_labels": {"run": "r", "severity": rule["labels"]["severity"], **player}, "exp_annotations": annotations}
    check = {"alertname": name, "eval_time": "70m", "exp_alerts": [fired]}
    case = {"interval": "1m", "input_series": present, "alert_rule_test": [check]}
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(path) for path in rule_files()], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("cases", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_no_text_of_a_case_has_an_empty_clause_or_a_plural_of_one(cases: Path) -> None:
    """promtool renders these texts in test_rules.py."""
    checks = [check for test in yaml.safe_load(cases.read_text())["tests"] for check in test["alert_rule_test"]]
    texts = [alert["exp_annotations"] for check in checks for alert in check.get("exp_alerts", []) if "exp_annotations" in alert]
    assert texts
    assert [text for text in texts if EMPTY.search(text["description"]) or re.search(r"\b1 \w+s\b", text["summary"])] == []
