"""Pushes metrics to a Pushgateway, for jobs that Prometheus can't reach, and deletes them there at the end.

A push replaces the whole group of its node (or rank), so that a metric that is no more does not stay. What a run that was killed has left
is swept when it starts again, wherever its nodes are then. A gateway that is away, slow or
refuses costs one warning an outage. Credentials are read from a file for every push and are in no log line.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.exposition import default_handler, delete_from_gateway, push_to_gateway
from prometheus_client.registry import Collector

from monitoring.endpoint.access import ExporterError, read_secret

JOB = "context_encoder"
"""The label `job` of what is pushed, the same as that of what is scraped."""
PUSH_SECONDS = 5.0
"""Longest silence of the gateway within a push."""
_SHOWN_BYTES = 300  # of what a gateway says about a push that it refuses

_log = logging.getLogger(__name__)


class Pushgateway:
    """Pushes from a thread of its own until it is closed. No gateway raises anything here.

    Args:
        url: of the gateway, `http://HOST:9091`.
        source: what to push.
        group: labels beside `job` under which it is kept; nobody else may push to the same.
        seconds: between two pushes.
        user: name for basic authentication; without one the secret is a bearer token.
        secret_file: with the password or the token, empty for none. Read for every push.
        sweeps: delete the other groups of the same `run` first: those of an earlier attempt. One that is still pushed to comes back.

    Attributes:
        failed: pushes in a row that the gateway did not take.
    """

    def __init__(
        self,
        url: str,
        source: Collector,
        group: Mapping[str, str],
        *,
        seconds: float = 30.0,
        user: str = "",
        secret_file: str | Path = "",
        sweeps: bool = False,
    ) -> None:
        self._url, self._source, self._group = url, source, dict(group)
        self._seconds, self._user, self._secret_file = seconds, user, secret_file
        self._sweeps = sweeps
        self.failed = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._push_again_and_again, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self, *, delete: bool = True) -> None:
        """Ends the pushes and deletes what was pushed. Takes a push's time limit at most, and that of the deletion. A second call does
        nothing.

        Args:
            delete: what was pushed.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(2 * PUSH_SECONDS)
        if not delete:
            return
        error = self._tried(lambda: delete_from_gateway(self._url, JOB, self._group, PUSH_SECONDS, self._send))
        if error is not None:
            group = ", ".join(f"{name} {value}" for name, value in self._group.items())
            _log.warning("the metrics of %s could not be deleted from the Pushgateway %s: %s. Delete them there", group, self._url, error)

    def _push_again_and_again(self) -> None:
        due = time.monotonic()
        while not self._closed.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + self._seconds
            error = self._tried(self._push)
            if error is not None:
                if not self.failed:
                    _log.warning("the Pushgateway %s took no metrics: %s. Tried again every %g s", self._url, error, self._seconds)
                self.failed += 1
            elif self.failed:
                _log.warning("the Pushgateway %s takes metrics again, after %d pushes that failed", self._url, self.failed)
                self.failed = 0

    def _push(self) -> None:
        if self._sweeps:
            for group in self._others():
                delete_from_gateway(self._url, JOB, group, PUSH_SECONDS, self._send)
            self._sweeps = False
        push_to_gateway(self._url, JOB, self._source, self._group, PUSH_SECONDS, self._send)

    def _others(self) -> list[dict[str, str]]:
        """Groups of the same run that are not this one."""
        request = urllib.request.Request(f"{self._url.rstrip('/')}/api/v1/metrics", headers=dict(self._authorisation()))  # noqa: S310
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=PUSH_SECONDS) as answer:
            groups = [dict(each["labels"]) for each in json.load(answer)["data"]]
        return [
            group for group in groups if group.pop("job", "") == JOB and group.get("run") == self._group.get("run") and group != self._group
        ]

    def _tried(self, request: Callable[[], None]) -> str | None:
        """What is wrong, None where nothing is."""
        try:
            request()
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(_SHOWN_BYTES).decode("utf-8", "replace").split())
            return f"it answered {error.code} {error.reason}{f', {said}' if said else ''}"
        except urllib.error.URLError as error:
            return str(getattr(error.reason, "strerror", None) or error.reason)
        except (OSError, http.client.HTTPException, ExporterError) as error:
            return str(error) or type(error).__name__
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"it is no Pushgateway, or one behind something that changes its answers ({error})"
        return None

    def _send(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:  # the form that prometheus_client's functions ask for
        return default_handler(url, method, timeout, [*headers, *self._authorisation()], data)

    def _authorisation(self) -> list[tuple[str, str]]:
        secret = read_secret(self._secret_file, "monitoring.pushgateway_secret_file")
        if not secret:
            return []
        name = self._user.encode()
        credentials = b"Basic " + base64.b64encode(name + b":" + secret) if name else b"Bearer " + secret
        return [("Authorization", credentials.decode("latin-1"))]

    def __enter__(self) -> Pushgateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Credentials go nowhere else."""
