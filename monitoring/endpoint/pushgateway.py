"""Pushes metrics to a Pushgateway, for jobs that Prometheus can't reach, and deletes them there at the end.

A push replaces the whole group of its node (or rank), so that metrics that no longer exist do not stay. The groups of a run that was killed
are swept when the run starts again, on whichever nodes. A gateway that is away, slow or refuses costs one warning an outage. Credentials
are read from a file for every push and are in no log line.
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
from typing import Any

from prometheus_client.exposition import default_handler, delete_from_gateway, push_to_gateway
from prometheus_client.registry import Collector

from monitoring.endpoint.access import read_secret
from monitoring.settings import EndpointError, MonitoringConfig

JOB = "context_encoder"
"""Label `job` of pushed metrics, the same as that of scraped ones."""
PUSH_SECONDS = 5.0
"""Longest silence of the gateway within a push, in seconds."""
_SHOWN_BYTES = 300  # bytes of a gateway's answer that are shown when it refuses a push

_log = logging.getLogger(__name__)


class Pushgateway:
    """Pushes from a thread of its own until it is closed. A gateway that fails raises nothing here.

    Args:
        settings: URL of the gateway, time between two pushes, user and secret file. Without a user the secret is a bearer token.
        source: metrics to push.
        group: labels beside `job` under which the gateway keeps the metrics; no other process may push to the same group.
        sweeps: first delete the other groups of the same `run`, which are left from an earlier attempt. A group that is still pushed to
            comes back.

    Attributes:
        failed: pushes in a row that the gateway did not take.
    """

    def __init__(self, settings: MonitoringConfig, source: Collector, group: Mapping[str, str], *, sweeps: bool = False) -> None:
        self._url, self._seconds, self._user = settings.pushgateway, settings.pushgateway_seconds, settings.pushgateway_user
        self._secret_file, self._source, self._group, self._sweeps = settings.pushgateway_secret_file, source, dict(group), sweeps
        self.failed = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._push_again_and_again, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self, *, delete: bool = True) -> None:
        """Ends the pushes and deletes the pushed metrics. Takes no longer than the time-outs of a push and of a deletion. A second call
        does nothing.

        Args:
            delete: delete the pushed metrics.
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
        """Groups of the same run but this one."""
        request = urllib.request.Request(f"{self._url.rstrip('/')}/api/v1/metrics", headers=dict(self._authorisation()))  # noqa: S310
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=PUSH_SECONDS) as answer:
            groups = [dict(each["labels"]) for each in json.load(answer)["data"]]
        return [
            group for group in groups if group.pop("job", "") == JOB and group.get("run") == self._group.get("run") and group != self._group
        ]

    def _tried(self, request: Callable[[], None]) -> str | None:
        """Makes a request; the reason where it fails, None where it succeeds."""
        try:
            request()
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(_SHOWN_BYTES).decode("utf-8", "replace").split())
            return f"it answered {error.code} {error.reason}{f', {said}' if said else ''}"
        except urllib.error.URLError as error:
            return str(getattr(error.reason, "strerror", None) or error.reason)
        except (OSError, http.client.HTTPException, EndpointError) as error:
            return str(error) or type(error).__name__
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"it is not a Pushgateway, or a proxy changes its answers ({error})"
        return None

    def _send(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:  # the signature that prometheus_client asks for
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
        """Follows no redirect, because credentials must go nowhere else."""
