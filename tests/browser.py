"""A real browser, headless, that records every error in a page and every request that a page makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Page, Request, sync_playwright

from tests.conftest import CHROMIUM

_WAIT = 60_000  # milliseconds for whatever a page is waited for: a busy machine is no failure


@dataclass
class Visit:
    """A page that is open.

    Attributes:
        page: to look at, to point at and to type into.
        errors: what its console and its scripts complained about.
        requests: addresses that it asked for.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visiting(url: str, *, online: bool, width: int = 1280, height: int = 900, scheme: str = "light", scale: float = 1.0) -> Iterator[Visit]:
    """Opens an address in a browser of its own.

    Args:
        url: file:// or http://.
        online: whether the page may reach the network; else every request beyond its own file fails, and is still written down.
        width, height: size of the window.
        scheme: light or dark.
        scale: pixels of the screen for one of the page.
    """
    program = next(found for name in CHROMIUM if (found := shutil.which(name)))  # the fixture chromium asks for one
    offline = [] if online else ["--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        # no sandbox, since tests may run as root; the pages are our own
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", *offline])
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            device_scale_factor=scale,
            has_touch=width < 500,
            locale="en-GB",
        )
        context.set_default_timeout(_WAIT)
        context.set_offline(not online)
        visit = Visit(context.new_page())

        def on_request(request: Request) -> None:
            if not request.url.startswith("data:"):
                visit.requests.append(request.url)

        visit.page.on("request", on_request)
        visit.page.on("console", lambda message: visit.errors.append(message.text) if message.type in ("error", "warning") else None)
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("dialog", lambda dialog: (visit.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        try:
            visit.page.goto(url, wait_until="load")
            yield visit
        finally:
            browser.close()
