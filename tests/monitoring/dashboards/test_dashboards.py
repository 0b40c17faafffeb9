"""Grafana's dashboards: the committed files are those that the code writes, and everything that they name exists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.monitoring.dashboards.dashboard_files import FOLDER, NAMES, load, panels

pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed (extra dashboards)")
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import DASHBOARDS, render
from monitoring.metrics.definitions import DEFINITIONS, PREFIX

PROVISIONING = FOLDER / "provisioning"


def headings(document: Path) -> set[str]:
    """Returns the anchors of the headlines of a document, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_committed_files_are_those_that_the_code_writes(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == render(name), "python -m monitoring.dashboards writes them anew"


def test_no_file_is_left_of_a_removed_dashboard() -> None:
    assert sorted(DASHBOARDS) == NAMES


def test_the_command_writes_them_with_another_runbook(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monitoring.dashboards", str(tmp_path / "new"), "--runbook", "https://example.org/operations.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "new" / f"{name}.json") for name in DASHBOARDS]
    for name in NAMES:
        written = json.loads((tmp_path / "new" / f"{name}.json").read_text(encoding="utf-8"))
        changed = [variable for variable in written["templating"]["list"] if variable not in load(name)["templating"]["list"]]
        assert [(variable["name"], variable["query"]) for variable in changed] == [("runbook", "https://example.org/operations.md")]


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_reads_back_what_it_wrote(name: str) -> None:
    register_default_plugins()
    committed = load(name)
    read = json.loads(json.dumps(Dashboard.from_json(committed), cls=JSONEncoder))
    for annotation in committed["annotations"]["list"]:
        assert annotation.pop("titleFormat"), "the one field that the SDK's model lacks"
    assert read == committed


@pytest.mark.parametrize("name", NAMES)
def test_panels_fit_the_grid_and_do_not_overlap(name: str) -> None:
    boxes = []
    for panel in load(name)["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["y"] >= 0
        assert at["w"] > 0
        assert at["h"] > 0
        assert at["x"] + at["w"] <= 24, panel["title"]
        boxes.append((panel["title"], at))
        assert not panel.get("panels"), "a closed row hides what it holds"
    for (first, one), (second, other) in combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, f"{first} and {second} overlap"
    lines: dict[int, int] = {}
    for _, at in boxes:
        lines[at["y"]] = lines.get(at["y"], 0) + at["w"]
    assert set(lines.values()) == {24}, "every line is full"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    dashboard, anchors = load(name), headings(ROOT / "docs" / "operations.md")
    known = {unit for name, unit in vars(units).items() if isinstance(unit, str) and not name.startswith("_")}
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles), "no panel repeats another"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(titles)
    asked = [tuple(target["expr"] for target in panel["targets"]) for panel in panels(dashboard)]
    assert len(set(asked)) == len(asked), "no panel repeats another"
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert defaults["unit"] in known, panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None, f"{panel['title']}: Grafana wants the first step without a value"
        meaning, action, link = panel["description"].split("\n\n")
        assert meaning.endswith(".")
        assert action.endswith(".")
        where = re.fullmatch(r"\[Operations: .+\]\(\$\{runbook\}#(.+)\)", link)
        assert where, panel["title"]
        assert where[1] in anchors, f"{panel['title']}: docs/operations.md has no part {where[1]}"
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["instant"] != target["range"]
            assert target["legendFormat"] or panel["type"] == "table"


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_unknown_at_first_are_shown_as_words(name: str) -> None:
    unknown = [PREFIX + definition.name for definition in DEFINITIONS if definition.unknown_at_first]
    for panel in panels(load(name)):
        if panel["type"] == "stat" and any(metric in panel["targets"][0]["expr"] for metric in unknown):
            special = [each["options"] for each in panel["fieldConfig"]["defaults"]["mappings"] if each["type"] == "special"]
            assert [each["match"] for each in special] == ["null+nan"], panel["title"]
            assert special[0]["result"]["text"], panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_row_is_the_state_of_the_run(name: str) -> None:
    rows = [panel for panel in load(name)["panels"] if panel["type"] == "row" or panel["gridPos"]["y"] == 1]
    first = [panel for panel in rows if panel["type"] != "row"]
    assert [panel["type"] for panel in first] == ["stat"] * 8
    assert first[0]["title"] == "Ranks that answer"
    assert first[-1]["title"] == "Firing alerts"
    for panel in first:
        for target in panel["targets"]:
            assert "$node" not in target["expr"], f"{panel['title']}: the state is that of the whole run, whichever node is chosen"
            assert "$rank" not in target["expr"], panel["title"]


def test_dashboards_link_to_each_other_and_keep_the_selection() -> None:
    uids = {name: load(name)["uid"] for name in NAMES}
    assert uids == {
        "training": "context-encoder-training",
        "data_path": "context-encoder-data-path",
        "cluster": "context-encoder-cluster",
        "checkpoints": "context-encoder-checkpoints",
    }, "addresses that users have bookmarked"
    for name in NAMES:
        dashboard = load(name)
        (link,) = (link for link in dashboard["links"] if link["type"] == "dashboards")
        assert link["tags"] == dashboard["tags"]
        assert link["includeVars"]
        assert link["keepTime"]
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert list(variables) == ["datasource", "job", "run", "node", "rank", "runbook"]
        for label in ("job", "run", "node", "rank"):
            assert variables[label]["multi"]
            assert variables[label]["includeAll"]
        assert [annotation["name"] for annotation in dashboard["annotations"]["list"]] == ["Restarts", "Checkpoints", "Firing alerts"]


def test_provisioning_fits_prometheus_the_dashboards_and_the_compose_file() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    scraped = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped, "$__rate_interval is derived from it"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "context_encoder.yaml").read_text())["providers"]
    grafana = yaml.safe_load((ROOT / "monitoring" / "docker-compose.yml").read_text())["services"]["grafana"]
    assert source["url"] == "${PROMETHEUS_URL}"
    assert grafana["environment"]["PROMETHEUS_URL"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounted["./grafana"] == provider["options"]["path"]
    (pin,) = re.findall(r"^grafana-foundation-sdk==\d+!(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert grafana["image"] == f"grafana/grafana:{pin}", "the SDK writes for one version of Grafana"


def test_a_run_needs_no_sdk() -> None:
    code = "import sys, monitoring; sys.exit(any(name.startswith('grafana_foundation_sdk') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=False).returncode == 0
