"""The report says what the record says, stays small, gives nothing away, and is written whatever the folder looks like."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monitoring.report import RunPageError, axes, page_of_finished_run, write_run_page, writing
from monitoring.report.curves import MOST_BUCKETS, Curves
from monitoring.report.disclosure import flattened, shown
from monitoring.report.lines import LONGEST_LINE, Lines
from monitoring.report.page import LARGEST
from monitoring.report.pictures import LARGEST as LARGEST_PICTURE
from monitoring.report.pictures import MOST_PICTURES, chosen, load
from monitoring.report.record import NEWEST_EVENTS, read
from pipeline.training.record.ledger import _counted
from pipeline.training.record.run_folder import RunFolder
from tests.conftest import ROOT

BEGUN = 1_700_000_000.0


def history_row(step: int, attempt: int, loss: float | None = None, **more: Any) -> dict[str, Any]:
    value = loss if loss is not None else 1.0 / step
    return {
        "step": step,
        "attempt": attempt,
        "epoch": 0,
        "batch": step - 1,
        "samples": "0" * 16,
        "rate": min(1.0, step / 10),
        "losses": {
            "discriminator": {"total": 0.7, "adversarial": 0.7, "accuracy_real": 0.75, "accuracy_generated": 0.5},
            "generator": {"total": value, "reconstruction": value * 2, "adversarial": 0.6},
        },
        "gradient_norms": {"discriminator": 0.1, "generator": 3.0},
        "skipped": [],
        "images_per_second": 40.0,
        "data_wait_share": 0.02,
        **more,
    }


def start(attempt: int, step: int, **more: Any) -> dict[str, Any]:
    facts = {"world_size": 2, "global_batch": 8, "recipe": "inpainting", "restarts": 0, "position": {"epoch": 0, "consumed": 8 * step}}
    return {"time": BEGUN + 100 * attempt, "event": "start", "attempt": attempt, "step": step, **facts, **more}


def write_run(folder: Path, events: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]], **kept: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("events", events), ("history", history)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": "inpainting", "training": {"steps": 100, "global_batch": 8}, **kept}))
    return folder


def draw(run: Path, step: int, size: tuple[int, int] = (40, 60)) -> Path:
    path = run / "pictures" / f"step_{step:09d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(step).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Killed behind its last checkpoint and finished by a second attempt: steps 9 to 12 were taken twice."""
    events = [
        start(1, 0),
        {"time": BEGUN + 120, "event": "checkpoint", "step": 8, "bytes": 5_000_000, "seconds": 0.5, "blocked": 0.1, "waited": 0.0},
        start(2, 8),
        {"time": BEGUN + 260, "event": "checkpoint", "step": 20, "bytes": 5_000_000, "seconds": 0.5, "blocked": 0.1, "waited": 0.0},
        {"time": BEGUN + 261, "event": "end", "step": 20, "reason": "finished"},
    ]
    history = [*(history_row(step, 1) for step in range(1, 13)), *(history_row(step, 2, 5.0) for step in range(9, 21))]
    return write_run(tmp_path / "run", events, history)


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        self.text[tag] = self.text.get(tag, "") + data

    def found(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if (name == tag and kind in attributes.get("class", "").split()) or (name == tag and not kind)
        ]


def written(run: Path) -> Page:
    return Page(write_run_page(run).path)


def test_steps_that_were_taken_back_are_shown_as_such_and_count_nowhere(run: Path) -> None:
    record = read(run)
    first, second = record.attempts
    assert (first.counted, first.undone, second.counted, second.undone) == (8, 4, 12, 0)
    curve = record.curves[("loss", "generator", "total")]
    assert sorted(curve.undone) == [9, 10, 11, 12]
    assert [curve.counted[step].mean for step in range(9, 21)] == [5.0] * 12, "the steps of the second attempt, not a mean with the first's"
    page = written(run)
    assert page.found("path", "undone"), "drawn, and not as the others"
    assert "4 steps taken back" in page.source
    assert "All 20 steps are done" in page.source
    assert ">160<" in page.source, "images: 20 steps of 8, not 24"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=6))
def test_the_same_steps_count_as_in_the_ledger(tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]) -> None:
    events, history, reached = [], [], 0
    for number, (begin, steps) in enumerate(attempts, 1):
        begins = min(begin, reached)
        events.append(start(number, begins))
        history += [history_row(step, number, 1000.0 * number + step) for step in range(begins + 1, begins + 1 + steps)]
        reached = max(reached, begins + steps)
    expected = {step: row["losses"]["generator"]["total"] for step, row in _counted(events, history).items()}
    record = read(write_run(tmp_path_factory.mktemp("run"), events, history))
    assert sum(each.counted for each in record.attempts) == len(expected)
    assert sum(each.undone for each in record.attempts) == len(history) - len(expected)
    if history:
        curve = record.curves[("loss", "generator", "total")]
        assert {step: bucket.mean for step, bucket in curve.counted.items()} == expected
        assert all(bucket.count == 1 for bucket in curve.counted.values())


def test_it_reads_what_the_run_folder_writes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.write_config({"recipe": "features", "training": {"steps": 4}})
    folder.event("start", attempt=1, world_size=3, step=0, global_batch=6, recipe="features")
    folder.history(history_row(step, 1) for step in range(1, 5))
    folder.event("end", step=4, reason="finished")
    folder.close()
    draw(folder.path, 4).rename(folder.picture(4))
    record = read(folder.path)
    assert record.problems == []
    assert record.is_finished
    assert (record.steps, record.planned, record.attempts[0].counted, record.attempts[0].world_size) == (4, 4, 4, 3)
    assert [step for step, _ in record.pictures] == [4]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.randoms())
def test_a_bucket_hides_no_value(values: list[tuple[int, float]], random: Any) -> None:
    def filled(values: list[tuple[int, float]]) -> Curves:
        curves = Curves()
        for step, value in values:
            curves.add(step, True, [(("loss",), value)])
        curves.flush()
        return curves

    curves = filled(values)
    buckets = curves[("loss",)].counted
    assert max(buckets) < MOST_BUCKETS
    assert sum(bucket.count for bucket in buckets.values()) == len(values)
    for index, bucket in buckets.items():
        own = [value for step, value in values if step // curves.width == index]
        assert (bucket.least, bucket.greatest) == (min(own), max(own))
        assert math.isclose(bucket.mean, math.fsum(own) / len(own), rel_tol=1e-9, abs_tol=1e-6)
    shuffled = list(values)
    random.shuffle(shuffled)
    again = filled(shuffled)[("loss",)].counted
    assert {key: (each.count, each.least, each.greatest) for key, each in again.items()} == {
        key: (each.count, each.least, each.greatest) for key, each in buckets.items()
    }


def test_a_long_history_takes_little_memory_and_keeps_its_one_spike(tmp_path: Path) -> None:
    spike, peaks = 2345, []
    for steps in (4200, 8400):  # both fill the buffer of steps more than once
        run = write_run(
            tmp_path / "run", [start(1, 0)], [history_row(step, 1, 77.0 if step == spike else 0.5) for step in range(1, steps + 1)]
        )
        tracemalloc.start()
        record = read(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3e6
    assert peaks[1] < 1.2 * peaks[0], "memory does not grow with the history"
    curve = record.curves[("loss", "generator", "total")]
    assert max(bucket.greatest for bucket in curve.counted.values()) == 77.0
    assert curve.counted[spike // record.curves.width].greatest == 77.0
    assert sum(bucket.count for bucket in curve.counted.values()) == steps


def test_the_largest_run_stays_below_five_megabytes(tmp_path: Path) -> None:
    events = [
        start(number, number, message="<&\"'>" * 300, versions={f"package {name}": "<" * 200 for name in range(100 * (number == 1000))})
        for number in range(1, 1001)
    ]
    events += [{"time": BEGUN, "event": f"kind {number % 90}", "message": "<&'\">" * 400, "step": number} for number in range(1100)]
    losses = {f"player <{player}>": {f"part & {part}": 1.0 for part in range(9)} for player in range(9)}
    spread = np.random.default_rng(0).normal(size=700)
    history = [
        history_row(
            step, 1000 if step > 3000 else 1, losses={who: dict.fromkeys(parts, float(spread[step % 700])) for who, parts in losses.items()}
        )
        for step in range(1, 5000, 7)
    ]
    sections = {f"section {number}": {f"key {key}": "<&>" * 90 for key in range(10)} for number in range(50)}
    run = write_run(tmp_path / "run", events, history, **sections)
    first = draw(run, 0, (800, 600))
    for step in range(1, 1000):
        os.link(first, run / "pictures" / f"step_{step:09d}.png")
    with open(run / "quarantine.jsonl", "w") as file:
        for number in range(100):
            file.write(
                json.dumps({"sample_id": number, "name": "<" * 500, "shard": "&" * 500, "cause": "digest", "reason": "'" * 900}) + "\n"
            )
    report = write_run_page(run)
    assert report.bytes < LARGEST
    page = Page(report.path)
    assert len(page.found("img")) == MOST_PICTURES + 1, "and the empty one of the viewer"
    assert 100 < page.source.count('class="kind"') <= NEWEST_EVENTS
    assert "earlier attempts are not listed" in page.source
    assert "older ones are in events.jsonl" in page.source
    assert "more settings are in config.yaml" in page.source


def test_nothing_that_a_run_wrote_becomes_markup(tmp_path: Path) -> None:
    evil = "</script></style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"
    events = [
        start(1, 0, recipe=evil, mode=evil, decoder=evil, versions={evil: evil}, position=evil),
        {"time": evil, "event": evil, "step": evil, evil: evil},
        {"time": BEGUN, "event": "stall", "attempt": 1, "waiting": evil},
        {"time": BEGUN, "event": "collapse", "player": evil, "step": 3},
        {"time": BEGUN, "event": "end", "step": 2, "reason": evil, "message": evil},
    ]
    losses = {evil: {evil: 1.0, f"accuracy_{evil}": 0.5}}
    history = [history_row(step, 1, losses=losses, gradient_norms={evil: 1.0, "b": 2.0}) for step in (1, 2)]
    run = write_run(tmp_path / evil.replace("/", "|"), events, history, **{evil: {evil: evil}})
    (run / "quarantine.jsonl").write_text(json.dumps(dict.fromkeys(("name", "shard", "cause", "reason"), evil)) + "\n")
    (run / "pictures").mkdir()
    (run / "pictures" / "step_000000001.png").write_bytes(evil.encode())
    plain = written(write_run(tmp_path / "plain", [start(1, 0)], [history_row(1, 1)]))
    page = written(run)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {
        "figure",
        "code",
        "dialog",
        "form",
        "button",
        "img",
        "ul",
        "li",
    }
    assert len(page.found("script")) == 2, "the data and the page's own"
    assert len(page.found("style")) == len(page.found("title")) == 1
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "://" not in page.source, "no address at all"
    assert page.source.count("alert(1)") > 10, "it is shown, as text"


def test_the_policy_allows_the_own_script_and_style_alone(run: Path) -> None:
    page = written(run)
    policy = next(each["content"] for each in page.found("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


SECRET = "sup3r-Secr3t-0815"
SECRETS = [
    f"GET https://user:{SECRET}@store.example/bucket",
    f"GET https://store.example/key?X-Amz-Signature={SECRET}&X-Amz-Date=1: 403",
    f"Authorization: Bearer {SECRET}",
    f"{{'aws_secret_access_key': '{SECRET}', 'endpoint': 'x'}}",
    f"password={SECRET}",
    f'"token": "{SECRET}"',
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"x-api-key: {SECRET}",
    f"access-key={SECRET}",
    f"private_key={SECRET}",
    f"pwd={SECRET}",
    f"DB_PASS={SECRET}",
    f"passphrase={SECRET}",
    f"Cookie: sid={SECRET}; theme=dark",
    f"Authorization: Token {SECRET}",
    f"Authorization: AWS4-HMAC-SHA256 Credential=AK/2026, SignedHeaders=host, Signature={SECRET}",
    f"s3://user:pa/{SECRET}@host/x",
    f"s3://user:p@rt/{SECRET}@host/x",
    f"<AWSAccessKeyId>{SECRET}</AWSAccessKeyId><SignatureProvided>{SECRET}=</SignatureProvided>",
    f"&lt;Token&gt;{SECRET}&lt;/Token&gt;",
    f"<Password><![CDATA[\n{SECRET}]]></Password>",
    f"password: correct horse {SECRET}",
    f"password='a,b;{SECRET}'",
    f"password='it\\'s {SECRET}', user='x'",
    f"secret_key=abc,{SECRET}",
    f"secretAccessKey => {SECRET}",
    f"password:\n    {SECRET}",
    f"('x-api-key', '{SECRET}')",
    f'{{\\"token\\": \\"{SECRET}\\"}}',
    f"DefaultEndpointsProtocol=https;AccountKey={SECRET};EndpointSuffix=x",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_in_messages_are_not_shown(text: str) -> None:
    assert SECRET not in shown(text)
    assert SECRET not in shown(f"before {text} behind")
    assert shown(f"before {text} behind").startswith("before ")


NAMES = st.sampled_from(
    ["password", "pwd", "passphrase", "secret", "token", "cookie", "authorization", "credentials", "signature", "PGPASSWORD", "authToken"]
    + [f"{name}{between}key" for name in ("api", "access", "secret", "private", "account") for between in ("", "-", "_", " ")]
    + ["X-Amz-Security-Token", "aws_secret_access_key", "AWSAccessKeyId", "AccountKey", "Set-Cookie", "password1", "token.value"]
)
ANY_SECRET = st.text(st.characters(blacklist_categories=["C", "Z"]), min_size=6).map(lambda text: f"{text}~{SECRET}~{text}")


@given(NAMES, st.sampled_from(["=", ": ", " = ", ":", " => "]), ANY_SECRET, st.sampled_from(["", " and more", ",more", ";more", "&more"]))
def test_whatever_the_secret_it_ends_at_its_quote_or_with_the_line(name: str, between: str, secret: str, more: str) -> None:
    assert shown(f"first line\n{name}{between}(open) {secret}{more}\nlast line") == f"first line\n{name}{between}(not shown)\nlast line"
    for quote in ('"', "'"):
        inside = secret.replace("\\", "\\\\").replace(quote, f"\\{quote}")
        text = f"step 3, {quote}{name}{quote}{between}{quote}{inside}{quote}, step 4{more}"
        assert shown(text) == f"step 3, {quote}{name}{quote}{between}{quote}(not shown){quote}, step 4{more}"
    whole = shown(f"{name}{between}{secret}")
    assert SECRET not in whole
    assert shown(whole) == whole, "a second time changes nothing"


ORDINARY = [
    "data.keys: 3, step 7",
    "secretary: Jane",
    "tokenizer=bpe",
    "author: x, authority=y",
    "design: 1, sigma=0.3, signal: SIGTERM",
    "monkey=1, keyboard: us, primary_key: 3",
    "forward_pass: 0.3 s, passed: 3 of 4",
    "generator/total: 0.25, discriminator/accuracy_real=0.75",
    "a token expired: retry in 5 s",
    "token: none; step: 5",
    "password=None, user='x'",
    "basic training: 3 steps",
    "/data/secret santa/tokens/0001.tar: 3 of 10",
    "s3://bucket/photo@2x.jpg, step 3",
    "http://127.0.0.1:9000/bucket/photo@2x.jpg: 404",
    "http://[::1]:9000/bucket/photo@2x.jpg: 404",
    "see https://store.example/help: write to me@store.example",
    "monitoring.token_file: /etc/token can't be read",
    "botocore.exceptions.NoCredentialsError: Unable to locate credentials",
    "ExpiredToken: The provided token has expired.",
    "SignatureDoesNotMatch: The request signature we calculated does not match",
    "An error occurred (InvalidAccessKeyId) when calling the PutObject operation: The Access Key Id does not exist in our records",
]


@given(st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=4), st.sampled_from(["; ", "\n"]))
def test_text_without_secrets_is_left_as_it_is(texts: list[str], between: str) -> None:
    assert shown(between.join(texts), 1000) == between.join(texts)


def test_what_a_user_wrote_as_options_of_a_store_is_not_shown_whatever_its_form() -> None:
    settings = {
        "storage_options": [["secret", SECRET]],
        "secretary": "Jane",
        "tokenizer": "bpe",
        "x-api-key": SECRET,
        "private key": SECRET,
    }
    found = dict(flattened(settings))
    assert found["secretary"] == "Jane"
    assert found["tokenizer"] == "bpe"
    assert SECRET not in str(found)


def test_secrets_in_settings_events_and_bad_samples_are_not_in_the_page(tmp_path: Path) -> None:
    options = {
        "key": SECRET,
        "secret": SECRET,
        "client_kwargs": {"deep": SECRET},
        "endpoint_url": f"https://u:{SECRET}@host/",
        "anon": True,
    }
    data = {"shards": f"s3://u:{SECRET}@bucket/x", "storage_options": options, "sources": {"one": {"storage_options": {"token": SECRET}}}}
    monitoring = {"token_file": "/etc/where-the-token-is", "api_key": SECRET}
    message = " ".join(SECRETS)
    events = [
        start(1, 0),
        {"time": BEGUN, "event": "checkpoint_failed", "error": message},
        {"event": "end", "reason": "x", "message": message},
    ]
    run = write_run(tmp_path / "run", events, [history_row(1, 1)], data=data, monitoring=monitoring)
    (run / "quarantine.jsonl").write_text(json.dumps({"name": message, "shard": message, "cause": "digest", "reason": message}) + "\n")
    page = written(run)
    assert SECRET not in page.source
    assert "/etc/where-the-token-is" in page.source, "where a secret lies is none"
    assert "(not shown)" in page.source
    assert dict(flattened({"data": {"storage_options": {"anon": True}}})) == {"data.storage_options.anon": "true"}


@pytest.mark.parametrize("missing", ["events.jsonl", "history.jsonl", "config.yaml"])
def test_what_is_missing_is_named(run: Path, missing: str) -> None:
    (run / missing).unlink()
    report = write_run_page(run)
    assert any(missing in problem for problem in report.problems)
    page = Page(report.path)
    assert missing in page.source
    assert len(page.found("section")) >= 7


def test_without_events_the_history_alone_tells_which_steps_count(run: Path) -> None:
    expected = [(each.number, each.counted, each.undone) for each in read(run).attempts]
    (run / "events.jsonl").unlink()
    assert [(each.number, each.counted, each.undone) for each in read(run).attempts] == expected


def test_damaged_lines_are_left_out_and_counted(run: Path) -> None:
    whole = read(run)
    for name in ("events.jsonl", "history.jsonl"):
        lines = (run / name).read_bytes().splitlines(keepends=True)
        junk = [
            b"\0" * 50 + b"\n",
            b'{"step": 1, "atte\n',
            b"[" * 50_000 + b"\n",
            b"x" * (2 * LONGEST_LINE) + b"\n",
            b"17\n",
            b"\xff\xfe\n",
        ]
        (run / name).write_bytes(b"".join([*junk, *lines, b'{"step": 999, "loss']))
    record = read(run)
    assert [(each.counted, each.undone) for each in record.attempts] == [(each.counted, each.undone) for each in whole.attempts]
    assert sum("6 damaged lines" in problem for problem in record.problems) == 2
    assert sum("cut short" in problem for problem in record.problems) == 2
    assert "6 damaged lines" in written(run).source


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "step",
    "attempt",
    "event",
    "time",
    "losses",
    "gradient_norms",
    "rate",
    "skipped",
    "world_size",
    "global_batch",
    "reason",
    "message",
]
KINDS = st.sampled_from(["start", "end", "checkpoint", "stall", "collapse", "restart", "starving"])
ROWS = st.dictionaries(st.sampled_from([*KEYS, "position", "player", "bytes", "images_per_second", "versions"]), JSON, max_size=8)


@settings(max_examples=50)
@given(st.lists(st.tuples(ROWS, KINDS), max_size=6), st.lists(ROWS, max_size=6), JSON | st.binary(max_size=40))
def test_whatever_the_files_hold_there_is_a_page(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[dict[str, Any], str]], history: list[dict[str, Any]], kept: Any
) -> None:
    run = tmp_path_factory.mktemp("run")
    named = [{**row, "event": kind} if len(row) % 3 else row for row, kind in events]
    stepped = [{"step": place, "attempt": 1, **row} for place, row in enumerate(history, 1)]
    for name, rows in (("events", named), ("history", stepped), ("quarantine", history)):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_bytes(kept if isinstance(kept, bytes) else json.dumps(kept).encode())
    page = written(run)
    assert len(page.found("script")) == 2
    json.loads(page.source.partition('id="chart-data">')[2].partition("</script>")[0], parse_constant=pytest.fail)


def test_a_run_that_goes_on_is_read_as_far_as_it_has_come(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [start(1, 0)], [history_row(step, 1) for step in range(1, 51)])
    with open(run / "history.jsonl", "a") as file:
        file.write('{"step": 51, "attem')
    page = written(run)
    assert ">running<" in page.source
    assert "50 of 100 steps are done, about 10 s are left at this speed" in page.source
    assert "cut short" not in page.source, "it is being written"
    for name in ("history.jsonl", "events.jsonl"):
        os.utime(run / name, (BEGUN, BEGUN))
    assert ">silent<" in written(run).source


@pytest.mark.parametrize(
    ("end", "word"),
    [
        ({"reason": "finished"}, "finished"),
        ({"reason": "SIGTERM"}, "stopped"),
        ({"reason": "NonFiniteError", "message": ""}, "failed"),
    ],
)
def test_how_it_ended(tmp_path: Path, end: dict[str, str], word: str) -> None:
    run = write_run(tmp_path / "run", [start(1, 0), {"time": BEGUN + 200, "event": "end", "step": 9, **end}], [history_row(9, 1)])
    assert f">{word}<" in written(run).source


def test_states_that_have_ended_or_were_of_an_earlier_attempt_are_no_notes(tmp_path: Path) -> None:
    collapse, over = {"event": "collapse", "player": "discriminator", "step": 5}, {"event": "collapse_over", "player": "discriminator"}
    assert read(write_run(tmp_path / "a", [start(1, 0), collapse], [])).states
    assert not read(write_run(tmp_path / "b", [start(1, 0), collapse, over], [])).states
    assert not read(write_run(tmp_path / "c", [start(1, 0), collapse, start(2, 0)], [])).states


def test_values_that_are_not_finite_are_marked_and_break_the_line(tmp_path: Path) -> None:
    history = [history_row(step, 1, math.nan if step == 5 else 0.5) for step in range(1, 10)]
    page = written(write_run(tmp_path / "run", [start(1, 0)], history))
    assert page.found("line", "nonfinite")
    lines = [each["d"] for each in page.found("path", "line")]
    assert any(path.count("M") == 2 for path in lines)
    assert "nan" not in "".join(lines).lower()


def test_pictures_are_the_newest_and_some_back_to_the_first() -> None:
    files = [(step, Path(f"{step}.png")) for step in range(0, 10_000, 10)]
    steps = [step for step, _ in chosen(files)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1], len(steps)) == (9990, 0, MOST_PICTURES)
    assert [step for step, _ in chosen(files[:3])] == [20, 10, 0]


def test_a_picture_that_does_not_get_small_by_itself_is_shrunk(run: Path) -> None:
    (picture,) = load([(1, draw(run, 1, (1600, 1300)))])
    assert len(picture.url) <= LARGEST_PICTURE * 4 / 3 + 50
    assert 0.8 < picture.width / picture.height < 0.83, "of 1300 x 1600 pixels"
    (small,) = load([(1, draw(run, 1))])
    assert (small.width, small.height) == (60, 40), "left as it is"


def test_a_damaged_picture_says_so_in_its_place(run: Path) -> None:
    draw(run, 10)
    draw(run, 20).write_bytes(b"\x89PNG\r\n\x1a\nand nothing")
    page = written(run)
    assert "step_000000020.png can&#x27;t be shown" in page.source
    assert len(page.found("figure", "grid")) == 2
    assert len([each for each in page.found("img") if each.get("src", "").startswith("data:image/jpeg;base64,")]) == 1


def test_every_chart_has_its_values_as_a_table_and_a_name(run: Path) -> None:
    page = written(run)
    charts = page.found("figure", "chart")
    assert len(charts) == 4 + 1 + 1 + 3, "total and adversarial of the discriminator are one"
    assert len(page.found("details", "values")) == len(charts)
    for plot in page.found("div", "plot"):
        assert plot["tabindex"] == "0"
        assert "over the steps" in plot["aria-label"]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_inside(least: float, extent: float) -> None:
    if least + extent <= least + abs(least) * 1e-6:
        return
    low, high = axes.domain(least, least + extent)
    assert low <= least + 1e-9 * max(extent, abs(least))
    assert high >= least + extent - 1e-9 * max(extent, abs(least))
    found = axes.ticks(low, high)
    assert 3 <= len(found) <= 6
    digits = {f"{abs(after - before):.6e}"[:2].rstrip(".") for before, after in itertools.pairwise(found)}
    assert digits <= {"1", "2", "5", "9", "4"}, "of 1, 2 and 5, up to rounding"


def test_figures_are_written_as_people_write_them() -> None:
    figures = [axes.figure(value) for value in (0.0, 0.123456, 1234567.0, -2.5, 1e-7, math.nan)]
    assert figures == ["0", "0.1235", "1.235e6", "\N{MINUS SIGN}2.5", "1e\N{MINUS SIGN}7", axes.UNKNOWN]
    assert [axes.short(value) for value in (500, 9000, 20_000, 1.5e6)] == ["500", "9,000", "20k", "1.5M"]
    assert [axes.duration(value) for value in (0.25, 75, 720, 11_100, 187_200)] == ["0.25 s", "75 s", "12 min", "3 h 05 min", "2 d 4 h"]
    assert [axes.percent(value) for value in (0.123, 0.004, 1.0)] == ["12.3 %", "0.4 %", "100 %"]


def test_a_folder_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunPageError, match="Name the folder of a run"):
        write_run_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_can_not_be_written_leaves_the_old_one_and_nothing_else(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunPageError, match="--output"):
        write_run_page(run, tmp_path / "nowhere" / "page.html")
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(RunPageError, match="--output"):
        write_run_page(run, taken)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken"}


def test_the_command_prints_where_the_page_is_and_what_is_missing(run: Path, tmp_path: Path) -> None:
    (run / "config.yaml").unlink()
    command = [sys.executable, "launch/report.py"]
    done = subprocess.run(
        [*command, str(run), "--output", str(tmp_path / "page.html")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split(":")[0]) == (0, str(tmp_path / "page.html"))
    assert "config.yaml" in done.stderr
    assert not (run / "report.html").exists()
    done = subprocess.run([*command, str(tmp_path / "no run")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_at_the_end_of_a_run_nothing_that_happens_to_the_report_matters(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page_of_finished_run(run) == f"report: {run / 'report.html'}"
    assert page_of_finished_run(tmp_path).startswith("no report was written (")

    def broken(record: object) -> str:
        raise LookupError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "page", broken)
        assert page_of_finished_run(run) == "no report was written (a bug)"
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")  # reads as a disk that hangs does: for ever
    assert "no report was written within" in page_of_finished_run(run, seconds=0.3)
    with open(run / "config.yaml", "w"):  # lets the reader go
        pass


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}')
    lines = Lines(path)
    assert [row["a"] for row in lines] == [1, 2]
    assert not lines.damaged
    assert not lines.cut_short, "it is whole without its end"
    assert Lines(tmp_path / "none").missing
