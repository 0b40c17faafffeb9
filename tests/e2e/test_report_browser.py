"""The report of a real run, and Prometheus's graph of it, in a real browser.

The run has two ranks, is killed once and goes on, so that there are steps that were taken back. SCREENSHOTS=FOLDER keeps the pictures, and
REPORT_STEPS=N trains longer for them: those in docs/images/ were made so.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image, ImageOps

from monitoring.report import write_run_page
from monitoring.report.curves import MOST_BUCKETS
from pipeline.training.record.run_folder import read_lines
from tests.datasets import photographs, write_dataset
from tests.launching import kill_all, setting_list, start, wait_until
from tests.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

browser = pytest.importorskip("tests.browser", reason="playwright is not installed (the extra test)", exc_type=ImportError)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("chromium", "prometheus"),
    pytest.mark.timeout(600),  # two attempts of two ranks come first
]

STEPS = int(os.environ.get("REPORT_STEPS", "60"))  # behind those of the attempt that is killed
EVERY = STEPS // 6
SETTINGS = [
    *("--recipe", "inpainting", "--method.width", "16", "--method.bottleneck", "64", "--method.batch_norm_group", "4"),
    *("--training.global_batch", "8", "--training.micro_batch", "4", "--training.pictures", "4"),
    *("--training.pictures_every", str(EVERY), "--checkpoint.every", str(EVERY), "--schedule.warmup_steps", str(EVERY)),
    *("--evaluation.every", str(EVERY)),
]
QUERIES = ["avg by (player, part) (context_encoder_loss)", "sum by (rank) (context_encoder_images_per_second)"]

OF_DEBIAN = "Unexpected token 'export'"  # its pages load popper.js, which is a module there, as a script


class Prometheus:
    """A real server that scrapes the ranks of a run."""

    def __init__(self, folder: Path, targets: Path) -> None:
        self.port = port = free_port()
        folder.mkdir()
        job = {
            "job_name": "context_encoder",
            "honor_labels": True,
            "file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}],
        }
        config = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / "log"
        arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/db", f"--web.listen-address=127.0.0.1:{port}"]
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(["prometheus", *arguments], stdout=file, stderr=file)

    def samples(self, expression: str) -> int:
        """How many values of the last ten minutes an expression has, over all series."""
        try:
            query = quote(f"sum(count_over_time(({expression})[10m:1s]))")
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?query={query}", timeout=5) as answer:
                rows = json.load(answer)["data"]["result"]
        except OSError:
            return 0  # not up yet
        return int(float(rows[0]["value"][1])) if rows else 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@dataclass(frozen=True)
class Trained:
    """A finished run of two attempts, its steps, and the server that scraped it."""

    run: Path
    steps: int
    server: Prometheus


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("report")
    write_dataset(folder / "shards", photographs(120, 140, 160), [50, 60, 10])
    run, log = folder / "inpainting-demo", folder / "log"
    server = Prometheus(folder / "prometheus", run / "targets")
    try:
        launcher = start(2, *setting_list(folder / "shards", run, 100_000, *SETTINGS), log=log)
        try:
            wait_until(lambda: launcher.poll() is not None or server.samples("context_encoder_loss") > 10, log, 240)
            wait_until(lambda: launcher.poll() is not None or is_between_two_checkpoints(run), log, 240)
            assert launcher.poll() is None, log.read_text()[-4000:]
        finally:
            if launcher.poll() is None:
                kill_all(launcher)
        steps = newest_step(run) + STEPS
        launcher = start(2, *setting_list(folder / "shards", run, steps, *SETTINGS), log=log)
        try:
            assert launcher.wait(280) == 0, log.read_text()[-4000:]
        finally:
            if launcher.poll() is None:
                kill_all(launcher)
        yield Trained(run, steps, server)
    finally:
        server.close()


def newest_step(run: Path) -> int:
    return max((row["step"] for row in read_lines(run / "history.jsonl")), default=0)


def is_between_two_checkpoints(run: Path) -> bool:
    """Behind the second and far from both sides, so that a kill takes steps back."""
    step = newest_step(run)
    return step > 2 * EVERY and EVERY // 4 <= step % EVERY <= EVERY // 2


def keep(shown: Page | Locator, name: str, margin: int = 0, **more: Any) -> None:
    """Keeps a picture of the page, or of a part of it, where that is asked for; with 256 colours, which is a third of the bytes."""
    if folder := os.environ.get("SCREENSHOTS"):
        picture = Image.open(io.BytesIO(shown.screenshot(**more))).convert("RGB")
        picture = ImageOps.expand(picture, margin, picture.getpixel((0, 0)))
        picture.quantize(256, dither=Image.Dither.NONE).save(Path(folder) / name, optimize=True)


def test_the_report_opens_without_a_network_and_shows_the_run(trained: Trained) -> None:
    report = trained.run / "report.html"
    assert report.stat().st_size < 5_000_000
    with browser.visiting(report.as_uri(), online=False, scale=1.5) as visit:
        page = visit.page
        assert page.locator(".state").inner_text().startswith("finished")
        assert page.locator(".tile").first.inner_text().split() == ["Steps", str(trained.steps), "of", str(trained.steps)]
        # generator: total, reconstruction, adversarial; discriminator: total; accuracy, gradient norms, rate, throughput, wait
        assert page.locator("#curves figure.chart").count() == 9
        points = page.evaluate(
            "[...document.querySelectorAll('#curves path.line:not(.points)')].map(path => [path.getTotalLength(), path.getBBox().width, "
            "(path.getAttribute('d').match(/[ML]/g) || []).length])"
        )
        assert len(points) == 11, "two lines of the accuracy and of the norms"
        for length, width, count in points:
            assert length >= width > 900, "over the whole width"
            assert count == trained.steps if trained.steps < MOST_BUCKETS else count >= MOST_BUCKETS // 2, "one a step, or a few of them"
        assert page.locator("#curves path.undone").count() == 11
        assert page.locator("#curves text.level").all_inner_texts() or page.locator("#curves .beyond").count(), "the baselines"
        said = r"held-back L1 [\d.]+ %, (visible mean|one colour) [\d.]+ %: ([\d.]+ % (better|worse)|no better); random start [\d.]+ %"
        assert re.search(said, page.locator(".sentence").inner_text())
        assert page.locator("#learning figure.chart").count() >= 1
        loaded = page.evaluate("[...document.querySelectorAll('.grid img')].map(image => image.complete && image.naturalWidth)")
        assert len(loaded) == 6
        assert all(width > 100 for width in loaded)
        rows = page.locator("table.attempts tbody tr").all_inner_texts()
        assert len(rows) == 2
        assert "finished" in rows[0]
        assert "killed" in rows[1]
        assert "simplejpeg" in page.locator("#environment").inner_text()
        assert re.search(r"torch\s+\d+\.\d+", page.locator("#environment").inner_text())
        keep(page, "report.png")
        keep(page, "report-whole.png", full_page=True)
        keep(page.locator("#attempts"), "report-attempts.png", margin=30)
        keep(page.locator(".follow").nth(1), "report-picture.png", margin=30)
        read_values(page)
        filter_events(page)
        enlarge_a_picture(page)
        follow_a_picture(page)
        assert visit.errors == []
        assert visit.requests == [report.as_uri()]


def read_values(page: Page) -> None:
    """With the pointer and with the keyboard: every chart shows the same step."""
    plots = page.locator("#curves .plot")
    legend = page.locator("#curves figure.chart").nth(1).locator(".legend dd").first
    latest = legend.inner_text()
    plots.first.scroll_into_view_if_needed()
    box = plots.first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 60)
    assert legend.inner_text() != latest, "another chart than the one that is pointed at"
    assert page.locator(".cursor[visibility=visible]").count() == page.locator(".plot").count()
    page.mouse.move(0, 0)
    assert legend.inner_text() == latest
    plots.first.focus()
    page.keyboard.press("Home")
    first = plots.first.get_attribute("aria-valuetext") or ""
    assert re.match(r"steps? [01]\b", first), "0 is the random start, where it was evaluated"
    page.keyboard.press("ArrowRight")
    assert re.match(r"steps? \d", second := plots.first.get_attribute("aria-valuetext") or "")
    assert second != first
    page.keyboard.press("ArrowLeft")
    assert plots.first.get_attribute("aria-valuetext") == first
    page.keyboard.press("Escape")
    assert page.locator(".cursor[visibility=visible]").count() == 0


def filter_events(page: Page) -> None:
    rows = page.locator(".events tbody tr:visible")
    everything = rows.count()
    page.select_option("#event-kind", "start")
    assert rows.count() == 2
    page.select_option("#event-kind", "")
    page.fill("#event-text", "FINISHED")
    assert rows.count() == 1
    assert page.locator("#event-count").inner_text() == f"1 of {everything} events"
    page.fill("#event-text", "")
    assert rows.count() == everything


def enlarge_a_picture(page: Page) -> None:
    page.locator(".enlarge").first.click()
    assert page.locator("#viewer img").is_visible()
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#viewer img").is_visible()


def follow_a_picture(page: Page) -> None:
    """From the context through the steps to the truth, with the keyboard and with the buttons."""
    strips = page.locator(".follow")
    assert strips.count() == 4, "training.pictures"
    assert page.evaluate("[...document.querySelectorAll('.follow img')].every(image => image.complete && image.naturalWidth === 128)")
    pictures = strips.first.locator(".enlarge")
    caption = page.locator("#viewer output")
    pictures.first.click()
    assert caption.inner_text() == "Picture 1, context"
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("ArrowRight")
    assert re.fullmatch(r"Picture 1, painted at step \d+, L1 [\d.]+ %", caption.inner_text())
    for _ in range(pictures.count() - 2):
        page.get_by_role("button", name="Next").click()
    assert caption.inner_text() == "Picture 1, truth"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer img").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_it_fits_a_phone_and_the_night(trained: Trained, width: int, scheme: str) -> None:
    with browser.visiting((trained.run / "report.html").as_uri(), online=False, width=width, height=844, scheme=scheme, scale=1.5) as visit:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing makes the page scroll sideways"
        ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        assert (brightness(ink) < brightness(paper)) == (scheme == "light")
        page.evaluate("document.querySelector('#curves').scrollIntoView({behavior: 'instant'})")
        box = page.locator("#curves .plot").first.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.5 * box["height"])
        assert page.locator(".cursor[visibility=visible]").count() == page.locator(".plot").count()
        keep(page, f"report-{'phone' if width < 500 else 'curves'}.png")
        assert visit.errors == []


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_nothing_that_a_run_wrote_runs_in_the_page(trained: Trained, tmp_path: Path) -> None:
    evil = "</script><script>alert('ran')</script><img src=https://example.invalid/x onerror=alert('ran')>"
    run = tmp_path / evil.replace("/", "|")
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("checkpoints"))
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": time.time(), "event": evil, "message": evil}) + "\n")
        file.write(json.dumps({"time": time.time(), "event": "end", "step": trained.steps, "reason": evil, "message": evil}) + "\n")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + json.dumps(evil) + ": " + json.dumps({evil: evil}) + "\n")
    path = write_run_page(run, tmp_path / "report.html").path
    with browser.visiting(path.as_uri(), online=False) as visit:
        assert visit.page.locator("body").inner_text().count("alert('ran')") > 5, "it is there, as text"
        assert visit.errors == []
        assert visit.requests == [path.as_uri()]


def test_what_would_run_is_stopped_by_the_policy(trained: Trained, tmp_path: Path) -> None:
    """Even if something were not escaped: the policy is no decoration."""
    page = (trained.run / "report.html").read_text()
    marker = "<main>"
    assert page.count(marker) == 1
    path = tmp_path / "hole.html"
    path.write_text(
        page.replace(marker, f"{marker}<script>window.ran = true</script><img src='http://127.0.0.1:9/x' onerror='window.ran = true'>")
    )
    with browser.visiting(path.as_uri(), online=True) as visit:
        assert visit.page.evaluate("window.ran") is None
        assert any("Content Security Policy" in error for error in visit.errors)


def test_the_graph_page_of_prometheus_draws_the_run(trained: Trained) -> None:
    server = trained.server
    address = "&".join(
        f"g{place}.expr={quote(query)}&g{place}.tab=0&g{place}.range_input=5m&g{place}.stacked=0" for place, query in enumerate(QUERIES)
    )
    with browser.visiting(f"http://127.0.0.1:{server.port}/graph?{address}", online=True) as visit:
        page = visit.page
        page.wait_for_function(
            f"document.querySelectorAll('.graph svg').length === {len(QUERIES)} && !document.querySelector('.graph svg:not(:has(path))')"
        )
        drawn = page.evaluate("[...document.querySelectorAll('.graph svg path')].filter(path => path.getTotalLength() > 5).length")
        assert drawn >= 8, "the parts of the losses of two players, and both ranks"
        assert "reconstruction" in page.locator("body").inner_text()
        keep(page, "prometheus.png")
        assert [error for error in visit.errors if error != OF_DEBIAN] == []
        assert {urlsplit(request).netloc for request in visit.requests} == {f"127.0.0.1:{server.port}"}
