"""The main job end to end on this machine: pictures, shards in an S3 server, two ranks that train from it, held-back pictures, a probe.

`make demo` runs it as `python -m launch.local.demo`. Everything goes into `.demo/`; a second call builds nothing anew and continues from
the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from launch.local.demo_pictures import SIDE, TRAINED_SIDE, cut_pictures, other_pictures, shipped_photographs
from launch.local.demo_summary import PROBE, demo_setting, newest_step, summary
from launch.local.object_store import SeaweedFS
from monitoring.run_files import TARGETS
from shards.counting import counted
from shards.dataset.manifest import load
from shards.store import Store
from shards.urls import with_literal_dollars

ROOT = Path(__file__).resolve().parents[2]
FEWEST = 80
"""Pictures of a data set below which a run holds none back."""
MOST_OF_A_CLASS = 100
"""Pictures of a class of one's own that the probe takes, so that it ends within minutes."""
NEIGHBOURS = ("1", "5", "20", "50", "100")
"""Numbers of neighbours to choose from: a random start needs many."""
OUTPUT = "relu5"
"""Layer that the encoder of the inpainting recipe ends with."""


@dataclass(frozen=True)
class DemoData:
    """The data of one demo: to train on, to evaluate on, and to probe with.

    Attributes:
        name: name of the run.
        shards: URL of the data set that is trained on.
        held_back: URL of the data set of held-back pictures; empty where the run itself holds a part of `shards` back.
        labelled: folder or URL of pictures with labels; empty where there are none.
        origin: where the held-back pictures come from, for a person.
        task: what the probe is asked, for a person.
    """

    name: str
    shards: str
    held_back: str
    labelled: str
    origin: str
    task: str


def main() -> int:
    """Runs the demo; returns 1 where something that it should leave behind is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, help="a folder of your own pictures instead of the ones that scikit-image and scikit-learn ship"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="folder of everything that the demo writes (default: .demo)")
    parser.add_argument(
        "--steps", type=int, default=0, help="steps to train in this call (default: the number in launch/configs/demo.yaml)"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    folder: Path = arguments.folder.resolve()
    with SeaweedFS(folder / "store") as server:
        print(f"object store: {server.endpoint} (SeaweedFS, loopback only)", flush=True)
        environment = {**os.environ, **server.environment}
        if "demo" not in {bucket.rstrip("/") for bucket in Store("s3://", server.options).fs.ls("", refresh=True)}:
            server.make_bucket("demo")
        data = shipped_data(folder, environment) if arguments.images is None else own_data(arguments.images.resolve(), server, environment)
        run = folder / f"run-{data.name}"
        before = newest_step(run)
        steps = before + arguments.steps if arguments.steps else steps_to_reach(before)
        scraper = Scraper(run)
        with scraper:
            call(training_command(data, run, steps, folder / "cache"), environment)
        if data.labelled:
            call(probe_command(data, run), environment)
        return summary(run, before, scraper.path, data.origin, data.task, time.monotonic() - began)


def shipped_data(folder: Path, environment: dict[str, str]) -> DemoData:
    """Cuts the photographs that ship with scikit-image and scikit-learn, and builds a data set of each part."""
    sets = cut_pictures(folder / "pictures", shipped_photographs(), other_pictures())
    trained_on, held_back = "s3://demo/trained-on", "s3://demo/held-back"
    for pictures, url, side in ((sets.trained_on, trained_on, TRAINED_SIDE), (sets.held_back, held_back, SIDE)):
        # their side already, so that no byte changes: the manifest has to say it, because an exported encoder and the probe ask for it
        build(pictures, url, environment, "--resize", str(side))
    return DemoData(
        "shipped",
        trained_on,
        held_back,
        str(sets.labelled),
        "the right third of each photograph, of which no pixel was trained on",
        "which picture a small grey tile was cut from, none of which was trained on",
    )


def own_data(images: Path, server: SeaweedFS, environment: dict[str, str]) -> DemoData:
    """Builds a data set of a person's own pictures, a part of which the run holds back."""
    # other pictures are another data set, so they get a run of their own
    name = f"own-{zlib.crc32(str(images).encode()):08x}"
    url = f"s3://demo/{name}"
    build(images, url, environment)
    manifest = load(url, server.options)
    if manifest.total_samples < FEWEST:
        raise SystemExit(
            f"error: {images} has {counted(manifest.total_samples, 'picture')} that can be read, "
            f"and the demo holds some back to judge what it paints: give it {FEWEST} or more"
        )
    labelled = url if len(manifest.classes) > 1 else ""
    return DemoData(name, url, "", labelled, "a part of your pictures", "which folder a picture is from, trained on without this label")


def build(pictures: Path, url: str, environment: dict[str, str], *options: str) -> None:
    """Builds a data set of a folder; does nothing where it is built already."""
    call([sys.executable, "-m", "shards", "build", str(pictures), url, "--shard-size", "256", *options], environment)


def training_command(data: DemoData, run: Path, steps: int, cache: Path) -> list[str]:
    """The command that trains, on two processes."""
    launch = [sys.executable, "-m", "launch", "--config_file", "launch/accelerate/cpu.yaml", "launch/pretrain.py"]
    settings = ["--config", "launch/configs/demo.yaml", "--data.shards", data.shards, "--training.steps", str(steps)]
    settings += ["--run", with_literal_dollars(str(run)), "--data.cache", with_literal_dollars(str(cache))]
    return [*launch, *settings, *(["--evaluation.shards", data.held_back] if data.held_back else [])]


def probe_command(data: DemoData, run: Path) -> list[str]:
    """The command that judges the output of the encoder beside that of random starts, its own among them."""
    options = ["--layers", OUTPUT, "--classifiers", "neighbours", "ridge", "--knn", *NEIGHBOURS, "--limit", str(MOST_OF_A_CLASS)]
    options += ["--random-starts", "3", "--out", str(run / PROBE)]
    return [sys.executable, "launch/evaluate.py", "probe", str(run), "--labelled", data.labelled, *options]


def steps_to_reach(before: int) -> int:
    """The number of steps in the configuration, or as many more where these are done."""
    steps = demo_setting("steps")
    return steps if before < steps else before + steps


def call(command: list[str], environment: dict[str, str]) -> None:
    """Prints a command of the project and runs it."""
    print("$ " + " ".join(Path(part).name if part.startswith("/") and "/bin/" in part else part for part in command), flush=True)
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the command gets the Ctrl-C, too: it saves and ends
        process.wait()
        raise SystemExit("interrupted: make demo continues from the last checkpoint") from None
    if code:
        raise SystemExit(f"error: that command ended with {code}; its messages are above. Without the demo's folder it starts anew")


class Scraper(threading.Thread):
    """Reads the metrics of every rank while the run goes on, as Prometheus does, and keeps the newest answer of each."""

    def __init__(self, run: Path) -> None:
        super().__init__(name="scraper", daemon=True)
        self.run_folder = run
        self.path = run / "metrics.txt"
        self._over = threading.Event()

    def run(self) -> None:
        """Scrapes once a second until the `with` block ends."""
        answers: dict[str, str] = {}
        while not self._over.wait(1.0):
            for file in sorted((self.run_folder / TARGETS).glob("rank*.json")):
                try:
                    target = json.loads(file.read_text())[0]["targets"][0]
                    with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                        answers[file.stem] = answer.read().decode()
                except (OSError, ValueError, LookupError, urllib.error.URLError):
                    continue  # the run is starting or ending
            if answers:
                self.path.write_text("".join(f"# {rank}\n{text}" for rank, text in sorted(answers.items())))

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


if __name__ == "__main__":
    sys.exit(main())
