"""Settings of the monitoring that no run could use are refused before any rank starts, and no secret is kept with the run."""

from __future__ import annotations

import pytest

from pipeline import recipes
from pipeline.config import parse, to_mapping
from pipeline.mapping import ConfigError


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
