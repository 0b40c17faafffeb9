"""The number of series of a large run in Prometheus, with every value that each label can ever have."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring import RunMetrics
from monitoring.metrics.definitions import complete
from pipeline.training.reporting.loader_series import LOADER_SERIES
from tests.monitoring.metrics.card import Card
from tests.monitoring.metrics.scraped import EVALUATION

DEFINITIONS = complete(LOADER_SERIES)
NODES, RANKS, MOST = 128, 8, 200_000
BESIDE = 10  # series per rank that Prometheus makes itself (up, scrape_*) and that recording rules and alerts make
ROOM = 0.05  # fraction of MOST that is kept free for further metrics


def full(rank: int) -> RunMetrics:
    """Returns the metrics of a rank with a GPU whose labels have taken every value, even beyond the limits."""
    metrics = RunMetrics("run", rank, NODES * RANKS, "node", version="1", torch_version="2", recipe="inpainting", loader=LOADER_SERIES)
    metrics.gpu(Card())  # type: ignore[arg-type]
    names = [f"player{number}" for number in range(100)]
    metrics.losses({name: {**{f"part{number}": 1.0 for number in range(20)}, f"accuracy_{name}": 0.5} for name in names})
    metrics.gradient_norms(dict.fromkeys(names, 1.0))
    metrics.learning_rates(dict.fromkeys(names, 1e-3))
    for name in names:
        metrics.collapsed(name, False)
        metrics.learning(name, False)
    metrics.evaluation({**EVALUATION, "maps": dict.fromkeys(names, 1), "dead_maps": dict.fromkeys(names, 0)})
    metrics.data(lambda: {total: 1.0 for definition in DEFINITIONS for total in definition.feeds})
    metrics.data(lambda: {f"bad_samples_{name}": 1.0 for name in names})
    return metrics


def series(exposition: bytes) -> list[str]:
    return [line.rpartition(b" ")[0].decode() for line in exposition.splitlines() if line and not line.startswith(b"#")]


@pytest.fixture(scope="module")
def expositions() -> list[bytes]:
    """Scrapes of the ranks of the first node."""
    return [generate_latest(full(rank).registry) for rank in range(RANKS)]


def test_a_run_of_128_nodes_stays_below_200000_series(expositions: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = (series(exposition) for exposition in expositions)
    found = [name for names in (first, *others) for name in names]
    assert len(set(found)) == len(found), "no series is exposed twice"
    (each,) = {len(names) for names in others}
    alone = len(first) - each
    alone = len(first) - each
    total = NODES * RANKS * (each + BESIDE) + alone
    with capsys.disabled():
        print(f"\n{total} series at {NODES} nodes x {RANKS} ranks: {each} + {BESIDE} a rank, {alone} of rank 0; at most {MOST}")
    assert total < (1 - ROOM) * MOST


def test_figures_of_the_run_are_those_of_rank_0_alone(expositions: list[bytes]) -> None:
    names = {f"context_encoder_{definition.name}" for definition in DEFINITIONS if definition.only_on_first_rank}
    assert len(names) > 10
    for rank, exposition in enumerate(expositions):
        exposed = {family.name for family in parse_text(exposition.decode())}
        assert exposed & names == (set() if rank else names)


def test_every_metric_is_counted_and_none_has_more_series_than_its_definition_allows(expositions: list[bytes]) -> None:
    exposed = {family.name: family for family in parse_text(expositions[0].decode())}
    for definition in DEFINITIONS:
        samples = exposed[f"context_encoder_{definition.name.removesuffix('_total')}"].samples
        for_each = len(definition.buckets) + 3 if definition.kind == "histogram" else 1
        assert for_each <= len(samples) <= (definition.most + bool(definition.labels)) * for_each, definition.name
        assert not definition.labels or definition.most > 1, f"{definition.name}: labels have more than one value"
        assert set(definition.known) <= {tuple(sample.labels[label] for label in definition.labels) for sample in samples}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_about_with_every_label_in_use(expositions: list[bytes]) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=expositions[0], capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_would_complain() -> None:
    from prometheus_client import Gauge

    registry = CollectorRegistry()
    Gauge("context_encoder_step_milliseconds", "A unit that is not a base unit.", registry=registry)
    wrong = subprocess.run(["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, timeout=60, check=False)
    assert wrong.returncode != 0
