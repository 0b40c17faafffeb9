"""Settings of the monitoring that no run could use are refused before any rank starts, and no secret is kept with the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from monitoring import MonitoringConfig, RankIdentity
from monitoring.endpoint.main import from_line, to_line
from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.mapping import ConfigError
from tests.conftest import ROOT


def parsed(*settings: str) -> object:
    return parse(recipes.SETTINGS, ["--data.shards", "x", *settings])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--monitoring.port", "65536"], "monitoring.port: 65536"),
        (["--monitoring.certificate_file", "a"], "monitoring.key_file"),
        (["--monitoring.key_file", "a"], "monitoring.certificate_file"),
        (["--monitoring.pushgateway", "gateway:9091"], "monitoring.pushgateway: 'gateway:9091'"),
        (["--monitoring.pushgateway", "ftp://gateway"], "monitoring.pushgateway"),
        (["--monitoring.pushgateway", "http://"], "monitoring.pushgateway"),
        (["--monitoring.pushgateway_seconds", "0"], "monitoring.pushgateway_seconds"),
        (["--monitoring.pushgateway_seconds", "nan"], "monitoring.pushgateway_seconds"),
        (["--monitoring.pushgateway", "http://g:9091", "--monitoring.pushgateway_user", "me"], "monitoring.pushgateway_secret_file"),
    ],
)
def test_a_setting_that_no_run_could_use_is_refused_by_its_name(settings: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(*settings)
    assert named in str(raised.value)


@pytest.mark.parametrize("url", ["https://me:s3cret@gateway", "http://me@gateway:9091", "http://gateway/?token=s3cret"])
def test_a_secret_in_the_address_of_the_gateway_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.pushgateway_secret_file") as raised:
        parsed("--monitoring.pushgateway", url)
    assert "s3cret" not in str(raised.value)


def test_addresses_of_gateways_are_taken_as_they_are() -> None:
    for url in ("http://gateway:9091", "https://gateway.example/behind/a/path", "http://127.0.0.1:9091/", "http://[::1]:9091"):
        config = parse(recipes.SETTINGS, ["--data.shards", "x", "--monitoring.pushgateway", url])
        assert to_mapping(config)["monitoring"]["pushgateway"] == url


@pytest.mark.parametrize(
    ("module", "absent"),
    [("monitoring.settings", {"prometheus_client", "asyncio", "torch", "numpy"}), ("monitoring.endpoint.main", {"torch", "numpy"})],
)
def test_settings_and_the_process_of_the_endpoint_need_nothing_heavy(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*(set({sorted(absent)}) & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "\n"


def test_the_process_of_the_endpoint_reads_what_the_rank_has_written(tmp_path: Path) -> None:
    settings = MonitoringConfig(port=0, per="rank", pushgateway="http://gateway:9091", pushgateway_seconds=0.5)
    identity = RankIdentity(tmp_path / "run ü", "run", "node", 5, 8, 1, 4, 3)
    assert from_line(to_line(settings, identity)) == (settings, identity)


@pytest.mark.parametrize(("per", "local_size", "served"), [("node", 4, [4, 5, 6, 7]), ("rank", 4, [5]), ("node", 1, [5])])
def test_an_endpoint_serves_the_ranks_of_its_node_or_its_own(
    tmp_path: Path, per: Literal["node", "rank"], local_size: int, served: list[int]
) -> None:
    identity = RankIdentity(tmp_path, "run", "node", 5, 8, 1, local_size, 1)
    assert list(identity.served(per)) == served
    assert identity.labels(per) == {"run": "run", "node": "node"} | ({"rank": "5"} if len(served) == 1 else {})
