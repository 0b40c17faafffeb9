"""The main job end to end on this machine: pictures, shards in an S3 server, two ranks that train from it, a checkpoint, metrics, grids.

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
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from launch.local.object_store import SeaweedFS
from monitoring.run_files import CHECKPOINTS, EVENTS, HISTORY, PICTURES, SETTINGS, TARGETS, Lines
from pipeline.training.checkpoint.retention import Retention
from pipeline.training.checkpoint.store import folder_name, verify
from shards.store import Store

ROOT = Path(__file__).resolve().parents[2]
CROP = 288  # pixels; the builder shrinks them to 256


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
    folder: Path = arguments.folder.resolve()
    # other pictures are another data set, so they get a run of their own
    name = "shipped" if arguments.images is None else f"own-{zlib.crc32(str(arguments.images.resolve()).encode()):08x}"
    pictures = arguments.images.resolve() if arguments.images else cut_pictures(folder / "pictures")
    with SeaweedFS(folder / "store") as server:
        print(f"object store: {server.endpoint} (SeaweedFS, loopback only)", flush=True)
        environment = {**os.environ, **server.environment}
        if "demo" not in {bucket.rstrip("/") for bucket in Store("s3://", server.options).fs.ls("", refresh=True)}:
            server.make_bucket("demo")
        url = f"s3://demo/{name}"
        call([sys.executable, "-m", "shards", "build", str(pictures), url, "--shard-size", "64"], environment)
        run = folder / f"run-{name}"
        before = newest_step(run)
        steps = before + arguments.steps if arguments.steps else steps_to_reach(before)
        launch = [
            str(Path(sys.executable).parent / "accelerate"),
            "launch",
            "--config_file",
            "launch/accelerate/cpu.yaml",
            "launch/pretrain.py",
        ]
        settings = ["--config", "launch/configs/demo.yaml", "--data.shards", url, "--run", str(run), "--training.steps", str(steps)]
        settings += ["--data.cache", str(folder / "cache")]
        scraper = Scraper(run)
        with scraper:
            call([*launch, *settings], environment)
        return summary(run, before, scraper.path)


def cut_pictures(folder: Path) -> Path:
    """Cuts the photographs that scikit-learn and scikit-image ship into some hundred crops, one folder a photograph."""
    if (folder / "done").exists():
        return folder
    from skimage import data  # noqa: PLC0415 (only the pictures that ship with the test packages need it)
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    samples = load_sample_images()
    sources = {Path(name).stem: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    sources |= {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
    random = np.random.default_rng(0)
    count = 0
    for name, source in sources.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(64):
            top, left = (int(random.integers(0, size - CROP + 1)) for size in source.shape[:2])
            crop = Image.fromarray(source[top : top + CROP, left : left + CROP])
            crop.save(folder / name / f"{number:03d}.jpg", quality=92)
            count += 1
    (folder / "done").touch()
    print(f"pictures: {count} crops of {len(sources)} photographs in {folder}", flush=True)
    return folder


def steps_to_reach(before: int) -> int:
    """The number of steps in the configuration, or as many more where these are done."""
    steps = demo_setting("steps")
    return steps if before < steps else before + steps


def demo_setting(name: str) -> int:
    """A training setting of launch/configs/demo.yaml."""
    return int(yaml.safe_load((ROOT / "launch/configs/demo.yaml").read_text())["training"][name])


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    steps = Retention(Store(str(run / CHECKPOINTS))).steps()
    return steps[-1] if steps else 0


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
        raise SystemExit(f"error: that command ended with {code}; its messages are above")


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


def summary(run: Path, before: int, metrics: Path) -> int:
    """Prints how the loss moved and where everything is; returns 1 where something is missing.

    Args:
        run: the run folder.
        before: step of the newest checkpoint before this call.
        metrics: file with the newest metrics of every rank.
    """
    history = {row["step"]: row["losses"]["context_encoder"]["total"] for row in Lines(run / HISTORY)}
    losses = [history[step] for step in sorted(history)]
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    step = newest_step(run)
    size = verify(Store(str(run / CHECKPOINTS)), step)
    grids = sorted((run / PICTURES).glob("*.png"))
    worlds = {line.rpartition(" ")[2] for line in metrics.read_text().splitlines() if line.startswith("context_encoder_world_size{")}
    print(
        f"""
steps        {before} -> {step}
world size   {", ".join(sorted(worlds))} (from the metrics)
loss         {first:.4f} -> {last:.4f} (mean of the first and of the last tenth of all steps)
checkpoint   {run / CHECKPOINTS / folder_name(step)} ({size / 1e6:.0f} MB, every byte verified)
pictures     {grids[-1] if grids else "none"}
metrics      {metrics} (while it trains, the addresses are in {run / TARGETS})
history      {run / HISTORY}, events: {run / EVENTS}, settings: {run / SETTINGS}
again        make demo continues from here; rm -r {run.parent} starts anew"""
    )
    problems = []
    if not last < first:
        problems.append("the loss did not fall")
    if worlds != {"2.0"}:
        problems.append("the metrics do not show two ranks")
    if not grids and step >= demo_setting("pictures_every"):
        problems.append("no picture was drawn")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
