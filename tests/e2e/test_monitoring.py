"""A real Prometheus beside a real run of two ranks: dashboards and rules find their data, and each fault raises the alert meant for it.

One run for all tests, which stand in the order in which things happen to it. The server scrapes it every other second and has the rules
twice: as they are, and with all durations divided by 40, which are those that fire.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest

from launch.local.object_store import SeaweedFS
from launch.local.prometheus import FOLDER, Prometheus
from monitoring.metrics.definitions import DEFINITIONS, PREFIX
from pipeline.training.record.run_folder import read_lines
from tests.datasets import photographs, upload, write_dataset
from tests.faults.proxy import Fault, Proxy, Rule
from tests.faults.shaping import Shape
from tests.launching import kill_all, ranks_of, setting_list, start, wait_until
from tests.monitoring.dashboards.dashboard_files import NAMES, expressions, load, substituted
from tests.rule_windows import rule_files, rules, shorten

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prometheus"),
]
FACTOR = 1 / 40
RUN = "live"
ENDLESS = 100_000
COUNTS = [14] * 6
USUAL = Shape(latency_ms=100)
"""Shape of the store: ranks that wait a little leave the processors to the programs that watch them."""
ABSENT = {PREFIX + each.name for each in DEFINITIONS if each.only_with_gpu} | {
    f"{PREFIX}{name}_accuracy_ratio" for name in ("probe", "held_back")
}
"""Metrics that this run may lack: it has no GPU, few held-back pictures for a probe, and a recipe that names no class."""
LONGEST = 50
"""Seconds, more than any shortened alert waits before it fires."""
WOKEN = "ALERTS{alertname='ShortTargetDown',severity='critical',alertstate='firing'}"
"""Alert that nothing of the run answers."""
PUSHED = "push_time_seconds"
"""Series of a Pushgateway, which this run does not need."""


@dataclass
class Live:
    """The run and all that stands around it.

    Attributes:
        store: store of the data set, which is stopped and started.
        proxy: proxy between the run and the store.
        folder: run folder.
        log: log of the ranks, over all attempts.
        settings: settings of the run.
        server: Prometheus.
        began: Unix time at which the server began.
        launchers: launchers of all attempts.
    """

    store: SeaweedFS
    proxy: Proxy
    folder: Path
    log: Path
    settings: list[str]
    server: Prometheus
    began: float
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def launch(self, *more: str) -> None:
        self.launchers.append(start(2, *self.settings, *more, log=self.log))

    @property
    def ranks(self) -> dict[int, psutil.Process]:
        return ranks_of(self.launchers[-1])

    def steps(self) -> int:
        return len(read_lines(self.folder / "history.jsonl"))

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that somebody would be told of, without what all are called, and how severe they are."""
        rows = [each["labels"] for each in self.server.alerts() if each["state"] == "firing"]
        return {(row["alertname"].removeprefix("Short").removeprefix("ContextEncoder"), row["severity"]) for row in rows}

    def told(self, name: str, severity: str) -> dict[str, str]:
        """The annotations of an alert, once it fires."""
        wanted = (name, severity)
        self.wait(lambda: wanted in self.firing())
        (found,) = [
            each["annotations"]
            for each in self.server.alerts()
            if each["labels"]["alertname"] == f"Short{name}" and each["labels"]["severity"] == severity
        ]
        return dict(found)

    def over(self, *names: str) -> None:
        """Waits until alerts do not fire any more."""
        self.wait(lambda: not {name for name, _ in self.firing()} & set(names))

    def goes_on(self, steps: int = 5) -> None:
        """Waits for steps."""
        before = self.steps()
        self.wait(lambda: self.steps() >= before + steps)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Waits for a condition; the log, the alerts and the targets are shown where it never comes."""
        try:
            wait_until(condition, self.log, 150)
        except AssertionError:
            print(json.dumps(self.server.alerts(), indent=1), self.server.query("up"), self.server.query("context_encoder_rank_up"))
            raise


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("monitoring")
    run = folder / RUN
    with ExitStack() as stack:
        store = stack.enter_context(SeaweedFS(folder / "store"))
        write_dataset(folder / "set", photographs(sum(COUNTS), 140, 160), COUNTS)
        url = upload(store, "monitoring", folder / "set")
        proxy = stack.enter_context(Proxy(store.endpoint, USUAL))
        options = {**store.options, "endpoint_url": proxy.endpoint}
        settings = [
            *setting_list(url, run, ENDLESS, "--recipe", "inpainting"),
            *("--method.width", "8", "--method.bottleneck", "16", "--method.batch_norm_group", "2"),
            *("--training.global_batch", "4", "--training.micro_batch", "4"),
            *("--data.storage_options", *(word for pair in options.items() for word in pair)),
            # room for a few of the shards, so that they come and go all the time; many requests, so that many are tried again
            *("--data.cache", str(folder / "cache"), "--data.cache_gb", "0.00016", "--data.ready_batches", "8"),
            *("--data.max_bad_fraction", "1", "--data.retries", "100", "--data.stall_seconds", "15", "--data.shuffle_block", "12"),
            *("--evaluation.judge_after", "1000000"),  # so small a network never beats one colour
            *("--checkpoint.every", "40", "--checkpoint.keep_last", "2", "--watchdog.starving_share", "0.8"),
            *("--watchdog.starving_seconds", "4", "--monitoring.peak_teraflops", "1"),
        ]
        shortened = folder / "rules"
        shortened.mkdir()
        both = [*rule_files(), *shorten(shortened, FACTOR)]
        server = stack.enter_context(Prometheus(folder / "prometheus", [run / "targets"], rules=both, interval="2s"))
        live = Live(store, proxy, run, folder / "log", settings, server, time.time())
        live.log.touch()
        try:
            live.launch()
            yield live
        finally:
            for launcher in live.launchers:
                if launcher.poll() is None:
                    kill_all(launcher)


def test_nobody_is_told_of_a_start_and_of_a_run_that_is_well(live: Live) -> None:
    """From before there is a run until two checkpoints are there and the alerts' windows have gone by."""
    told: set[tuple[str, str]] = set()

    def well() -> bool:
        told.update(live.firing())
        rows = live.server.query("short:checkpoint_interval:seconds > 0 and short:steps:rate5m > 0")
        seen = live.server.query(f"2 * count_over_time(short:steps:rate5m{{run='{RUN}'}}[10m])")
        return bool(rows) and float(seen[0]["value"][1]) > LONGEST

    live.wait(well)
    assert told == set()
    rows = live.server.query("count by (run) (context_encoder_rank_up == 1)")
    assert [(row["metric"], row["value"][1]) for row in rows] == [({"run": RUN}, "2")]
    (target,) = live.server.query("up")
    assert target["metric"].keys() >= {"job", "instance", "run", "node"}


def test_shards_that_are_damaged_raise_bad_samples(live: Live) -> None:
    live.proxy.rules = [Rule(Fault.FLIP, key="*shard-000003.tar"), Rule(Fault.FLIP, key="*shard-000004.tar")]
    texts = live.told("BadSamples", "warning")
    live.proxy.rules = []
    assert re.search(r"\d+ digest on rank [01], \S+;", texts["description"]), texts
    assert {row["cause"] for row in read_lines(live.folder / "quarantine.jsonl")} == {"digest"}


def test_a_rank_that_stands_still_raises_training_stalled(live: Live) -> None:
    """The other rank's metrics go on being served, and nobody is woken for a run that does not answer."""
    live.ranks[1].send_signal(signal.SIGSTOP)
    up = f"context_encoder_rank_up{{run='{RUN}'}}"
    live.wait(lambda: {row["metric"]["rank"]: row["value"][1] for row in live.server.query(up)} == {"0": "1", "1": "0"})
    texts = live.told("TrainingStalled", "critical")
    assert "Longest: rank 0 on" in texts["description"], texts
    silent = live.told("TargetDown", "warning")
    assert silent["summary"].startswith(f"1 rank of run {RUN} ")
    assert "rank 1 on" in silent["description"]
    assert live.server.query(f"count_over_time({WOKEN}[1h])") == []
    live.ranks[1].send_signal(signal.SIGCONT)
    live.goes_on()
    live.over("TrainingStalled", "TargetDown")


def test_a_loader_that_starves_raises_data_starvation(live: Live) -> None:
    live.proxy.shape = Shape(latency_ms=4000)
    texts = live.told("DataStarvation", "warning")
    assert re.search(r"^Ranks that starve: [12] of 2\. .*rank [01] on \S+ \d", texts["description"]), texts
    live.proxy.shape = USUAL
    live.over("DataStarvation")


def test_a_store_that_is_stopped_raises_storage_errors(live: Live) -> None:
    live.store.kill()
    texts = live.told("StorageErrors", "warning")
    assert re.search(
        r"Repeated per second: \w+ on rank [01], \S+ 0\.\d|Repeated per second: \w+ on rank [01], \S+ [1-9]", texts["description"]
    ), texts
    live.store.start()
    live.goes_on()
    live.over("StorageErrors", "TrainingStalled", "DataStarvation")


def test_a_run_that_was_killed_raises_target_down(live: Live) -> None:
    launcher = live.launchers[-1]
    live.ranks[1].kill()
    assert launcher.wait(timeout=120) != 0
    texts = live.told("TargetDown", "critical")
    assert re.search(r"In its target files, 5 at most: 127\.0\.0\.1:\d+ \(node \S+?\)[.;]", texts["description"]), texts


def test_nobody_is_told_of_a_run_that_goes_on_and_ends(live: Live) -> None:
    """The next attempt takes the alert back; when it has done its steps nothing of it is left to be told of."""
    step = read_lines(live.folder / "history.jsonl")[-1]["step"]
    live.launch("--training.steps", str(step + 40))
    live.over("TargetDown")
    told = set[tuple[str, str]]()
    assert live.launchers[-1].wait(timeout=150) == 0, live.log.read_text()[-3000:]
    assert list((live.folder / "targets").iterdir()) == []
    live.wait(lambda: live.server.query("up") == [])
    quiet = time.monotonic() + LONGEST
    while time.monotonic() < quiet:
        told |= live.firing()
        time.sleep(0.5)
    assert told - {("BadSamples", "warning")} == set()


def points(server: Prometheus, expression: str, began: float) -> list[float]:
    """All values that an expression had since then, as a panel draws them."""
    now = time.time()
    asked = urlencode({"query": expression, "start": began, "end": now, "step": max(1, round((now - began) / 400))})
    with urllib.request.urlopen(f"{server.url}/api/v1/query_range?{asked}", timeout=60) as answer:  # noqa: S310 - a loopback URL
        rows = json.load(answer)["data"]["result"]
    return [float(text) for row in rows for _, text in row["values"]]


def without_data(server: Prometheus, found: dict[str, str], began: float) -> list[str]:
    """The expressions that had no value but NaN all the time, with where each stands."""
    return [f"{where}: {expression}" for expression, where in found.items() if all(map(math.isnan, points(server, expression, began)))]


def may_lack_data(expression: str) -> bool:
    return any(name in expression for name in ABSENT)


def test_every_expression_of_every_dashboard_has_data(live: Live) -> None:
    found = {substituted(text): where for name in NAMES for where, text in expressions(load(name))}
    assert len(found) > 60
    empty = without_data(live.server, {text: where for text, where in found.items() if not may_lack_data(text)}, live.began)
    assert empty == []


def test_every_rule_has_data_and_none_fails(live: Live) -> None:
    assert [(rule["name"], rule.get("lastError")) for rule in live.server.rules() if rule["health"] != "ok"] == []
    records = {rule["record"]: rule["record"] for rule in rules(FOLDER / "rules" / "recording.yml")}
    assert without_data(live.server, records, live.began) == []
    asked = {}
    for rule in rules(FOLDER / "rules" / "alerts.yml"):
        for part in split(rule["expr"]):
            asked[part] = rule["alert"]
    empty = without_data(live.server, asked, live.began)
    assert [text for text in empty if PUSHED not in text] == []


COMPARISON = re.compile(r"\s(?:==|>=|<=|>|<)\s+(?:[\d.e-]+(?: \* \d+)?(?: \* [\w:]+)?|[\w:]+)")


def split(expression: str) -> list[str]:
    """Returns the parts of an alert's expression between `and` and `or`, each without its comparison."""
    parts = re.split(r"\b(?:and on \(run\)|and\b|or\b)", COMPARISON.sub("", f" {expression} "))
    return [balanced(" ".join(part.split())) for part in parts]


def balanced(part: str) -> str:
    """Without the brackets that grouped it with its neighbours."""
    while part.count("(") > part.count(")"):
        part = part.removeprefix("(").strip()
    while part.count(")") > part.count("("):
        part = part.removesuffix(")").strip()
    return part
