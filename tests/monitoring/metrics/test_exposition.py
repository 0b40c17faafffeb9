"""A scrape of one rank holds the declared metrics and is right by the rules of Prometheus, read back through its own parsers."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from monitoring import PREFIX, RunMetrics
from monitoring.metrics.run_metrics import OTHER
from tests.monitoring.metrics.scraped import CONSTANT, DEFINITIONS, exercise, families, value


def test_every_declared_metric_is_exposed_with_its_type_and_labels(metrics: RunMetrics) -> None:
    exercise(metrics)
    exposed = families(metrics)
    for definition in DEFINITIONS:
        family = exposed[PREFIX + definition.name.removesuffix("_total")]
        assert family.type == definition.kind, definition.name
        assert family.documentation == definition.help
        assert family.samples, definition.name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {*CONSTANT, *definition.labels}, sample.name
            assert {key: sample.labels[key] for key in CONSTANT} == CONSTANT


def test_nothing_is_exposed_that_is_not_declared(metrics: RunMetrics) -> None:
    exercise(metrics)
    declared = {PREFIX + definition.name.removesuffix("_total") for definition in DEFINITIONS} | {f"{PREFIX}build_info"}
    others = set(families(metrics)) - declared
    assert all(name.startswith("process_") for name in others), others
    assert {"process_resident_memory_bytes", "process_open_fds"} <= others


def test_names_follow_the_rules_of_prometheus() -> None:
    for definition in DEFINITIONS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", definition.name), definition.name
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        bare = definition.name.removesuffix("_total")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|gb|percent|count|sum|bucket|gauge|counter|histogram|total)$", bare), (
            definition.name
        )
        words = bare.split("_")
        for unit in ("seconds", "bytes", "ratio"):
            assert unit not in words[:-1], f"{definition.name}: the unit comes last"
        assert definition.help.endswith("."), definition.name
    assert len({definition.name for definition in DEFINITIONS}) == len(DEFINITIONS)


def test_the_openmetrics_form_parses_strictly_and_carries_the_units(metrics: RunMetrics) -> None:
    exercise(metrics)
    text = generate_openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    exposed = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    for definition in DEFINITIONS:
        assert exposed[PREFIX + definition.name.removesuffix("_total")].unit == definition.unit
    assert exposed[f"{PREFIX}step_seconds"].unit == "seconds"
    assert exposed[f"{PREFIX}read_bytes"].unit == "bytes"
    assert exposed[f"{PREFIX}build"].type == "info"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_about(metrics: RunMetrics) -> None:
    exercise(metrics)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, timeout=30, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_number_of_series_is_bounded(metrics: RunMetrics) -> None:
    for number in range(100):
        metrics.losses({"generator": {f"part{number}": float(number)}})
        metrics.data({f"bad_samples_cause{number}": 1.0}.copy)
    exposed, most = families(metrics), {definition.name: definition.most for definition in DEFINITIONS}
    assert len(exposed[f"{PREFIX}loss"].samples) == most["loss"] + 1
    assert len(exposed[f"{PREFIX}bad_samples"].samples) == most["bad_samples_total"] + 1
    assert sum(sample.value for sample in exposed[f"{PREFIX}bad_samples"].samples) == 100, (
        "only the cause of a sample is lost, not the sample"
    )
    assert value(metrics, "loss", player=OTHER, part=OTHER) == 99


def test_world_and_build_are_known_from_the_start(metrics: RunMetrics) -> None:
    assert value(metrics, "world_size") == 8
    assert value(metrics, "build_info", version="0.1.0", torch="2.9", recipe="features") == 1


def test_names_with_any_characters_can_be_scraped() -> None:
    odd = RunMetrics('a"b\\c\nd\udcff', 0, 1, "nœud")
    (sample,) = families(odd)[f"{PREFIX}step"].samples
    assert sample.labels == {"run": 'a"b\\c\nd?', "rank": "0", "node": "nœud"}


def test_two_runs_in_one_process_do_not_mix() -> None:
    one, two = RunMetrics("one", 0, 1, "n"), RunMetrics("two", 0, 1, "n")
    one.step(step=7, epoch=0, progress=0.0, seconds=0.1, images=1, data_wait_seconds=0.0)
    assert one.registry.get_sample_value(f"{PREFIX}step", {"run": "one", "rank": "0", "node": "n"}) == 7
    assert two.registry.get_sample_value(f"{PREFIX}step", {"run": "two", "rank": "0", "node": "n"}) == 0
