"""Every expression of the dashboards names metrics that exist, parses, and finds data in a run."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.samples import Sample

from monitoring.metrics.definitions import DEFINITIONS, PREFIX, STEP_BUCKETS
from monitoring.metrics.run_metrics import RunMetrics
from pipeline.training.reporting.loader_series import LOADER_SERIES
from tests.conftest import ROOT
from tests.monitoring.dashboards.dashboard_files import NAMES, expressions, load, substituted
from tests.monitoring.metrics.scraped import EVALUATION

RULES = ROOT / "monitoring" / "prometheus" / "rules"
NOT_DRAWN = {
    "images_per_second": "keeps its last value while the loop hangs; the dashboards show the rate of images_total, which falls to 0",
    "checkpoint_last_timestamp_seconds": "the dashboards show its age",
}
"""Metric on no dashboard -> reason."""
CLAUSES = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
RESTART, END = 30, 60
"""Minutes after the start of a run: the ranks die, and are back half a minute later; the last of the samples."""
SAVES = {"checkpoint_step": (100, 200, 300), "checkpoint_last_timestamp_seconds": (60, 1200, 1500)}
"""Checkpoints of that run, the second ten and the third five minutes before it is restarted."""
WORDS = {"and", "or", "unless", "offset", "bool"}


def named(expression: str) -> set[str]:
    """The metrics in an expression of PromQL."""
    bare = re.sub(CLAUSES, " ", re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression))
    bare = re.sub(r"offset\s+\S+", " ", bare)
    return {word for word in re.findall(r"[A-Za-z_:][\w:]*\b(?!\s*\()", bare) if word not in WORDS}


def recorded() -> set[str]:
    """Returns the names of the series that the recording rules make."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    return {rule["record"] for file in files for group in file["groups"] for rule in group["rules"] if "record" in rule}


def exposed() -> dict[str, str]:
    """Returns the series that ranks expose -> name of their definition."""
    series = {}
    for definition in DEFINITIONS:
        endings = ("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",)
        series |= {PREFIX + definition.name + ending: definition.name for ending in endings}
    return series


def process_series() -> set[str]:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return {sample.name for metric in registry.collect() for sample in metric.samples}


def run_of_two_ranks() -> list[dict[str, str]]:
    """Returns series for promtool, a sample every 15 seconds, of a run that is restarted and whose ranks then have other ports."""
    series = []
    for rank in range(2):
        for attempt, timing in ((1, f"{{}}x{4 * RESTART} stale"), (2, f"_x{4 * RESTART + 2} {{}}x{4 * (END - RESTART) - 2}")):
            labels = {"job": "context_encoder", "instance": f"node{rank}:{9400 + attempt}", "run": "run", "node": f"node{rank}"}
            for sample in exposition(rank):
                text = ",".join(f'{key}="{value}"' for key, value in {**sample.labels, **labels}.items())
                values = timing.format(development(sample, rank, attempt))
                if (saves := SAVES.get(sample.name.removeprefix(PREFIX))) and attempt == 1:
                    values = f"{saves[0]}x{4 * (RESTART - 10) - 1} {saves[1]}x19 {saves[2]}x19 {saves[2]} stale"
                series.append({"series": f"{sample.name}{{{text}}}", "values": values})
    return series


def exposition(rank: int) -> list[Sample]:
    """Returns the samples that a rank exposes, including those of a GPU, and `up`, which Prometheus adds."""
    metrics = RunMetrics("run", rank, 2, f"node{rank}", version="1", torch_version="2", recipe="inpainting", loader=LOADER_SERIES)
    metrics.losses({"generator": {"total": 1.0}, "discriminator": {"adversarial": 1.0, "accuracy_real": 0.5, "accuracy_generated": 0.5}})
    metrics.gradient_norms({"generator": 1.0})
    metrics.learning_rates({"generator": 1.0})
    metrics.collapsed("discriminator", False)
    metrics.evaluation(EVALUATION)
    found = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    gpu = [PREFIX + definition.name for definition in DEFINITIONS if definition.only_with_gpu]
    return [*found, *(Sample(name, {"rank": str(rank)}, 0.5) for name in gpu), Sample("up", {}, 1)]


def development(sample: Sample, rank: int, attempt: int) -> str:
    """Returns the course of a series in promtool's notation: counters and sums grow, faster on the slower rank; others are constant."""
    if "le" in sample.labels:
        slope = len([bound for bound in (*STEP_BUCKETS, math.inf) if bound <= float(sample.labels["le"])])
        return f"0+{slope}"
    if sample.name.endswith(("_total", "_sum")) or sample.name == f"{PREFIX}step":
        return f"0+{rank + 1}"
    if sample.name.endswith("_count"):
        return f"0+{len(STEP_BUCKETS) + 1}"
    special = {"attempt": str(attempt), "world_size": "2", "rank_up": "1", "data_starving": "0", "collapsed": "0", "not_learning": "0"}
    special |= {name: str(saves[-1]) for name, saves in SAVES.items()}
    return special.get(sample.name.removeprefix(PREFIX), "0.5") + "+0"


def evaluate(folder: Path, asked: list[tuple[str, float]]) -> dict[tuple[str, float], str]:
    """Returns (expression, minute) -> its result in promtool's notation, with the recording rules active; empty for no series."""
    tests = [{"expr": expression, "eval_time": f"{round(minute * 60)}s", "exp_samples": []} for expression, minute in asked]
    run = {"interval": "15s", "input_series": run_of_two_ranks(), "promql_expr_test": tests}
    file = folder / "tests.yml"
    rules = [str(path) for path in sorted(RULES.glob("*.yml"))]
    # JSON is YAML
    file.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "15s", "tests": [run]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    found = dict.fromkeys(asked, "")
    for block in re.split(r"^\s+expr: ", said, flags=re.MULTILINE)[1:]:  # expressions with a result fail, because none is expected
        answer = re.match(r'("(?:[^"\\]|\\.)*"), time: (\w+),\s*exp:.*?\s*got:(.*)', block, re.DOTALL)
        assert answer, block
        clock = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", answer[2])
        assert clock, answer[2]
        hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        found[json.loads(answer[1]), hours * 60 + minutes + seconds / 60] = answer[3]
    assert len(found) == len(asked), "promtool answered another expression"
    assert any(found.values()), said
    return found


@pytest.mark.parametrize("name", NAMES)
def test_expressions_name_metrics_that_exist(name: str) -> None:
    known = exposed().keys() | process_series() | recorded() | {f"{PREFIX}build_info", "up", "ALERTS"}
    for where, expression in expressions(load(name)):
        metrics = named(substituted(expression))
        assert metrics, where
        assert metrics <= known, f"{where} names {sorted(metrics - known)}: in no definition and no recording rule"


def test_every_metric_is_on_some_dashboard() -> None:
    drawn = {metric for name in NAMES for _, expression in expressions(load(name)) for metric in named(expression)}
    found = {definition for series, definition in exposed().items() if series in drawn}
    assert {each.name for each in DEFINITIONS} - found == NOT_DRAWN.keys(), "show it on a dashboard, or give the reason in NOT_DRAWN"


@needs_promtool
@pytest.mark.parametrize("name", NAMES)
def test_expressions_parse(name: str, tmp_path: Path) -> None:
    found = list(expressions(load(name)))
    rules = [{"record": f"test:{number}", "expr": substituted(expression)} for number, (_, expression) in enumerate(found)]
    assert not [rule for rule in rules if "$" in rule["expr"]]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@needs_promtool
def test_every_expression_finds_data_in_a_run_that_was_restarted(tmp_path: Path) -> None:
    found = {substituted(expression): where for name in NAMES for where, expression in expressions(load(name))}
    minutes = (RESTART - 2, RESTART + 0.75, RESTART + 20)  # at the second, rates see the ranks of both attempts
    for (expression, minute), answer in evaluate(tmp_path, [(expression, minute) for expression in found for minute in minutes]).items():
        mark = found[expression].endswith(("/ Restarts", "/ Checkpoints", "/ Firing alerts"))  # which are not always there
        assert answer or mark, f"{found[expression]} finds nothing {minute} minutes after the start"
        assert "NaN" not in answer, f"{found[expression]}: {answer}"


@needs_promtool
def test_restarts_and_checkpoints_are_marked_once_where_they_happen(tmp_path: Path) -> None:
    annotations = {substituted(each["expr"]): each["name"] for each in load("training")["annotations"]["list"]}
    times = [quarter / 4 for quarter in range(4 * (RESTART - 12), 4 * (RESTART + 3))]
    seen: list[tuple[float, str, str]] = []
    for (expression, minute), answer in evaluate(
        tmp_path, [(expression, minute) for expression in annotations for minute in times]
    ).items():
        seen += [(minute, annotations[expression], label) for label in re.findall(r'(?:attempt|checkpoint_step)="(\d+)"', answer)]
    marks = [(RESTART - 10, "Checkpoints", "200"), (RESTART - 5, "Checkpoints", "300"), (RESTART + 0.5, "Restarts", "2")]
    assert sorted(seen) == marks


@pytest.mark.parametrize("name", NAMES)
def test_rates_fit_whatever_time_is_shown(name: str) -> None:
    for where, expression in expressions(load(name)):
        for function, window in re.findall(r"\b(\w+)\([^()]*\[([^\]]+)\]", expression):
            if function == "rate":
                assert window == "$__rate_interval", where
            else:
                assert window in ("$__rate_interval", "$__range", "1h"), where
