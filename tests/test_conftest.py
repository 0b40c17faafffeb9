"""Rules that tests/conftest.py holds the suite to, each with a test that breaks it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import FAST, over_time, skips


def report(name: str, cpu: float = 0.0, wall: float = 0.0, markers: tuple[str, ...] = ()) -> Any:
    """A report of a test's call, as far as the rules look at it."""
    return SimpleNamespace(
        nodeid=name, when="call", keywords=dict.fromkeys(markers, 1), user_properties=[("cpu", cpu), ("wall", wall)], longrepr="no reason"
    )


def test_a_slow_test_needs_its_marker_and_a_busy_machine_is_no_failure() -> None:
    reports = [report("quick", 0.1, 0.2), report("busy", FAST + 1, FAST + 2), report("waits", 0.1, FAST + 1)]
    reports += [report(marker, FAST + 1, FAST + 1, (marker,)) for marker in ("slow", "server", "gpu")]
    busy, long = over_time(reports)
    assert [line.rpartition(" ")[2] for line in busy] == ["busy"]
    assert [line.rpartition(" ")[2] for line in long] == ["waits"]


def test_only_a_test_that_needs_a_gpu_may_be_skipped() -> None:
    assert skips([report("gpu", markers=("gpu",))]) == []
    assert skips([report("other", markers=("server",))]) == ["skipped, which is a failure here: other: no reason"]


@pytest.mark.usefixtures("pushgateway")
def test_a_test_that_may_start_a_server_is_marked_so(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("server") is not None


def test_other_tests_are_not(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("server") is None


def test_the_seed_of_random_draws_is_shown_and_can_be_given(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request.config.option, "seed", "17")
    draw: random.Random = request.getfixturevalue("draw")
    assert draw.random() == random.Random("17").random()
    assert "--seed=17" in capsys.readouterr().out
