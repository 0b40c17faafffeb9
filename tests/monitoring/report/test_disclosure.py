"""A page gives no secret away, and nothing that a run wrote becomes part of its markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.report.disclosure import flattened, shown
from tests.monitoring.report.runs import BEGUN, evaluation_row, history_row, start, write_evaluations, write_run, written

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
def test_any_secret_is_hidden_to_its_closing_quote_or_to_the_end_of_the_line(name: str, between: str, secret: str, more: str) -> None:
    assert shown(f"first line\n{name}{between}(open) {secret}{more}\nlast line") == f"first line\n{name}{between}(not shown)\nlast line"
    for quote in ('"', "'"):
        inside = secret.replace("\\", "\\\\").replace(quote, f"\\{quote}")
        text = f"step 3, {quote}{name}{quote}{between}{quote}{inside}{quote}, step 4{more}"
        assert shown(text) == f"step 3, {quote}{name}{quote}{between}{quote}(not shown){quote}, step 4{more}"
    whole = shown(f"{name}{between}{secret}")
    assert SECRET not in whole
    assert shown(whole) == whole, "hiding twice changes nothing"


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
def test_text_without_secrets_is_unchanged(texts: list[str], between: str) -> None:
    assert shown(between.join(texts), 1000) == between.join(texts)


def test_options_of_a_store_written_by_hand_are_hidden_in_any_form() -> None:
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
    assert "/etc/where-the-token-is" in page.source, "the path of a secret is no secret"
    assert "(not shown)" in page.source
    assert dict(flattened({"data": {"storage_options": {"anon": True}}})) == {"data.storage_options.anon": "true"}


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    evil = "</script></style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"
    events = [
        start(1, 0, recipe=evil, mode=evil, decoder=evil, versions={evil: evil}, position=evil),
        {"time": evil, "event": evil, "step": evil, evil: evil},
        {"time": BEGUN, "event": "stall", "attempt": 1, "waiting": evil},
        {"time": BEGUN, "event": "rank_died", "attempt": 1, "rank": evil, "node": evil, "signal": evil},
        {"time": BEGUN, "event": "collapse", "player": evil, "step": 3},
        {"time": BEGUN, "event": "end", "step": 2, "reason": evil, "message": evil},
    ]
    losses = {evil: {evil: 1.0, f"accuracy_{evil}": 0.5}}
    history = [history_row(step, 1, losses=losses, gradient_norms={evil: 1.0, "b": 2.0}) for step in (1, 2)]
    run = write_run(tmp_path / evil.replace("/", "|"), events, history, **{evil: {evil: evil}})
    (run / "quarantine.jsonl").write_text(json.dumps(dict.fromkeys(("name", "shard", "cause", "reason"), evil)) + "\n")
    named: dict[str, Any] = {"baselines": {evil: {"loss": 0.5}, "b": evil}, "maps": {evil: 3}, "dead_maps": {evil: 1}, "probe": evil}
    write_evaluations(run, [evaluation_row(step, 0.4, **named) for step in (0, 2)])
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": "not_learning", "problem": evil, "message": evil, "step": 1}) + "\n")
        file.write(json.dumps({"event": "not_learning", "problem": [evil], "step": evil}) + "\n")
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
    assert len(page.found("script")) == 2, "the data and the script of the page"
    assert len(page.found("style")) == len(page.found("title")) == 1
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "://" not in page.source, "no address at all"
    assert page.source.count("alert(1)") > 10, "it is shown as text"


def test_the_policy_allows_only_the_script_and_style_of_the_page(run: Path) -> None:
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
