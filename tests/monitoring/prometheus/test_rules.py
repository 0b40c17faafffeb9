"""Prometheus's own tools check the configuration, the rules and the cases of each alert. Tests here check what these tools do not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.local.prometheus import FOLDER, Prometheus, PrometheusError, configuration
from monitoring.metrics.definitions import DEFINITIONS, PREFIX
from pipeline.config import Config, DataConfig
from pipeline.training.supervision.watchdog import patience
from tests.conftest import ROOT
from tests.rule_windows import rule_files, rules, shorten, shortened

CASES = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS = [rule for rule in rules(FOLDER / "rules" / "alerts.yml") if "alert" in rule]
RECORDS = [rule for rule in rules(FOLDER / "rules" / "recording.yml") if "record" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
amtool = pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed (Debian: prometheus-alertmanager)")


def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)


def succeed(*command: str | Path) -> None:
    done = call(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_accepts_the_configuration_and_the_rules() -> None:
    succeed("promtool", "check", "config", FOLDER / "prometheus.yml")
    succeed("promtool", "check", "rules", "--lint=all", "--lint-fatal", *rule_files())


@promtool
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_each_case_raises_its_alerts_and_no_other(cases: Path) -> None:
    succeed("promtool", "test", "rules", cases)


@amtool
def test_alertmanager_accepts_the_example() -> None:
    succeed("amtool", "check-config", FOLDER / "alertmanager.yml")


@amtool
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "pager"), ("warning", "tickets")])
def test_only_critical_alerts_go_to_the_pager(severity: str, receiver: str) -> None:
    done = call("amtool", "config", "routes", "test", f"--config.file={FOLDER / 'alertmanager.yml'}", f"severity={severity}", "run=one")
    assert done.stdout.split() == [receiver], done.stderr


def test_every_rule_of_silence_names_alerts_that_exist() -> None:
    rows: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())["inhibit_rules"]
    for row in rows:
        for matcher in [*row["source_matchers"], *row["target_matchers"]]:
            label, operator, value = re.fullmatch(r'(\w+)(=~|!=|=)"(.*)"', matcher).groups()  # type: ignore[union-attr]
            assert label in ("alertname", "severity")
            if label == "alertname" and operator != "!=":
                assert [name for name in NAMES if re.fullmatch(value, name)], f"{matcher} matches no alert"
        assert row["equal"] == ["run"]


def cases_of(name: str) -> list[dict[str, Any]]:
    tests = [test for path in CASES for test in yaml.safe_load(path.read_text())["tests"]]
    return [test for test in tests if any(case["alertname"] == name for case in test["alert_rule_test"])]


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_cases_that_raise_it_and_cases_that_do_not(name: str) -> None:
    tests = cases_of(name)
    checks = [check for test in tests for check in test["alert_rule_test"] if check["alertname"] == name]
    assert any(not check.get("exp_alerts") for check in checks), "a time at which the alert does not fire yet"
    fired = {(alert["exp_labels"]["run"], alert["exp_labels"]["severity"]) for check in checks for alert in check.get("exp_alerts", [])}
    assert {severity for _, severity in fired} == {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}
    for test in tests:
        runs = {found for each in test["input_series"] for found in re.findall(r'run="([^"]*)"', each["series"])}
        silent = runs - {run for run, _ in fired}
        assert len(silent) >= 3, "near misses"
        (everything,) = [check for check in test["promql_expr_test"] if "count_over_time(ALERTS" in check["expr"]]
        fired_at_any_time = {found for row in everything["exp_samples"] for found in re.findall(r'run="([^"]*)"', row["labels"])}
        assert not fired_at_any_time & silent


def anchors(document: Path) -> Counter[str]:
    """Counts the anchors of a document's headings, as the web pages of a repository make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return Counter(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_names_the_run_the_ranks_the_value_and_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["for"]
    texts = rule["annotations"]
    assert "$labels.run" in texts["summary"]
    assert "$value" in texts["summary"] + texts["description"] or ".Value" in texts["description"] or "== 0" in rule["expr"]
    assert ".Labels.node" in texts["description"]
    assert "rank" in texts["description"]
    document, _, anchor = texts["runbook_url"].partition("#")
    assert anchors(ROOT / document)[anchor] == 1, f"{texts['runbook_url']} leads nowhere"


def minutes(rule: dict[str, Any]) -> float:
    return float(re.fullmatch(r"(\d+)m", rule["for"])[1])  # type: ignore[index]


def test_faults_that_the_watchdog_repairs_page_no_person() -> None:
    """With default settings: a rank that hangs in a step or waits for data, a slow start, and ranks that only the timer in C can end."""
    local, remote = (patience(Config(method=None, data=DataConfig(shards=shards))) for shards in ("/set", "s3://bucket/set"))
    assert (local.step / 60, remote.step / 60, local.checkpoint / 60) == pytest.approx((9, 12, 30)), "as comments and docs say"
    (bound,) = [rule["expr"] for rule in RECORDS if rule["record"] == "context_encoder:stall_bound:seconds"]
    least = int(re.search(r"clamp\(.*, (\d+) \* 60, ", bound)[1])  # type: ignore[index]
    (stalled,) = [rule for rule in ALERTS if rule["alert"] == "ContextEncoderTrainingStalled"]
    assert least + minutes(stalled) > remote.step / 60
    (gone,) = [rule for rule in ALERTS if rule["alert"] == "ContextEncoderTargetDown" and rule["labels"]["severity"] == "critical"]
    assert minutes(gone) >= max(local.startup / 60, 2 * remote.step / 60 + 1)


def test_rules_name_metrics_that_exist() -> None:
    declared = {PREFIX + each.name for each in DEFINITIONS}
    for each in DEFINITIONS:
        if each.kind == "histogram":
            declared |= {f"{PREFIX}{each.name}_{part}" for part in ("bucket", "sum", "count")}
    recorded = {rule["record"] for rule in RECORDS}
    used = defaultdict(set)
    for rule in [*ALERTS, *RECORDS]:
        for text in [rule["expr"], *rule.get("annotations", {}).values()]:
            for name in re.findall(r"\bcontext_encoder[_:][\w:]+", text):
                used[name].add(rule.get("alert", rule.get("record")))
    for name, where in used.items():
        assert name in (recorded if ":" in name else declared), f"{name} in {where}"


def test_every_duration_has_a_form_that_tests_can_shorten(tmp_path: Path) -> None:
    assert shortened("rate(a[5m]) > 15 * 60 and b offset 1h", 1 / 60) == "rate(a[5000ms]) > 15 and b offset 60000ms"
    for rule in [*ALERTS, *RECORDS]:
        rest = re.sub(r"\d+ms|\bcontext_encoder:[\w:]+", "", shortened(rule["expr"], 1 / 60))
        assert not re.search(r"\d[smhdwy]\b", rest), f"a duration in {rule} that is not shortened"
        assert not re.search(r"\b[1-9]\d\d+\b", re.sub(r"\d+ \* 60", "", rule["expr"])), f"seconds in {rule} not written as N * 60"
    if shutil.which("promtool"):
        succeed("promtool", "check", "rules", *shorten(tmp_path, 1 / 60))


def test_a_configuration_for_this_machine_changes_only_the_paths(tmp_path: Path) -> None:
    made = configuration([tmp_path / "targets"], [tmp_path / "rules.yml"], "1s")
    (job,) = made["scrape_configs"]
    assert job["honor_labels"] is True
    assert job["job_name"] == "context_encoder"
    assert job["file_sd_configs"] == [{"files": [f"{tmp_path}/targets/*.json"], "refresh_interval": "1s"}]
    assert made["rule_files"] == [f"{tmp_path}/rules.yml"]
    assert made["global"] == {"scrape_interval": "1s", "evaluation_interval": "1s"}
    assert "alerting" not in made


@pytest.mark.server
@promtool
def test_a_prometheus_that_can_not_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "rules.yml"
    broken.write_text("groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]")
    server = Prometheus(tmp_path / "prometheus", [tmp_path], rules=[broken])
    with pytest.raises(PrometheusError, match=r"rules\.yml"), server:
        pass
    server.close()


@pytest.mark.server
@promtool
def test_a_wrong_query_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Prometheus(tmp_path / "prometheus", [tmp_path]) as server:
        assert server.query("1 + 1")[0]["value"][1] == "2"
        assert {rule["name"] for rule in server.rules()} == {*NAMES, *(rule["record"] for rule in RECORDS)}
        with pytest.raises(PrometheusError, match="parse error"):
            server.query("sum(")
    with pytest.raises(PrometheusError, match="does not answer"):
        server.query("1")


def test_everything_that_docker_compose_mounts_exists() -> None:
    path = ROOT / "monitoring" / "docker-compose.yml"
    content = yaml.safe_load(path.read_text())
    mounted = [volume for service in content["services"].values() for volume in service["volumes"]]
    for volume in mounted:
        source, target, *_ = volume.replace("${RUNS:-../runs}", "/runs").split(":")
        assert source.startswith("/runs") or source in content["volumes"] or (path.parent / source).exists(), volume
        assert target.startswith("/")
    addresses = re.findall(r"(?:listen-address=|HTTP_ADDR: )([\d.]+)", path.read_text())
    assert set(addresses) == {"127.0.0.1"}, "the addresses of all three services"
    assert len(addresses) == 3
