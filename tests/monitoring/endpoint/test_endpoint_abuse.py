"""Abuse of the endpoint of a run that goes on: the endpoint recovers by itself from all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from benchmarks.abusers import OTHERS, SCRAPERS
from monitoring.endpoint.server import MAX_CLIENTS
from tests.conftest import ROOT
from tests.monitoring.endpoint.ranks import Rank, by_rank, get, scrape, wait_until

RANK_FILES = 8  # that are open while the ranks are asked


@pytest.mark.slow
def test_after_every_kind_of_abuse_a_scrape_succeeds_and_nothing_has_grown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    with Rank(tmp_path / "run", 0, token_file=str(token)) as first, Rank(tmp_path / "run", 1, token_file=str(token)) as second:
        assert first.endpoint is not None
        authorised = {"Authorization": "Bearer s3cret"}
        scrape(first.url, **authorised)
        processes = [first.endpoint, psutil.Process(first.process.pid), psutil.Process(second.process.pid)]
        sizes = [(process.num_threads(), process.num_fds()) for process in processes]  # at most: the scrape may be about to end
        target = first.url.removeprefix("http://").removesuffix("/metrics")
        command = [sys.executable, "-m", "benchmarks.abusers", target, "--token-file", str(token), "--seconds", "8"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as abusers:
            assert abusers.stdout is not None
            assert abusers.stdout.readline() == f"{SCRAPERS + 6 * OTHERS} clients\n"
            files = 0
            while abusers.poll() is None:
                files = max(files, first.endpoint.num_fds())
                assert first.endpoint.num_threads() <= sizes[0][0], "no thread for a request"
                assert [process.num_threads() for process in processes[1:]] == [size[0] for size in sizes[1:]], "not a rank's business"
            answers = json.loads(abusers.stdout.read())
        assert 10 < files <= MAX_CLIENTS + sizes[0][1] + RANK_FILES
        assert answers["scrape"]["HTTP/1.0 200 OK"] > 0, answers
        for kind in ("wrong_token", "garbage", "half_a_request", "drip"):
            assert "HTTP/1.0 200 OK" not in answers[kind], answers
        assert by_rank(scrape(first.url, **authorised), "rank_up") == {"0": 1.0, "1": 1.0}
        for process, (threads, quiet) in zip(processes, sizes, strict=True):
            wait_until(
                lambda process=process, threads=threads, quiet=quiet: process.num_threads() <= threads and process.num_fds() <= quiet
            )
        assert get(first.url)[0] == 401
        assert processes[0].is_running()
        assert first.endpoint.memory_info().rss < 200 * 2**20
        assert second.end() == first.end() == 0
    assert first.log.read_text() == second.log.read_text() == ""


@pytest.mark.slow
def test_two_hundred_scrapes_at_once_are_all_answered(tmp_path: Path) -> None:
    with Rank(tmp_path / "run", 0, 1) as rank, ThreadPoolExecutor(200) as pool:
        for status, body in pool.map(lambda _: get(rank.url), range(200)):
            assert status == 200
            assert b'context_encoder_rank_up{node="node",rank="0",run="run"} 1.0' in body
