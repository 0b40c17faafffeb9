"""Trains runs that learn and runs that do not, and tabulates what their evaluations say of them.

All train the features recipe at an eighth of its width on photographs, of which a tenth is held back, in one process and on one CPU thread.
The learning run is trained with ten seeds, the others with one. Prints one Markdown table.

    python -m benchmarks.learning_runs PICTURES
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import measured_here
from monitoring.run_files import EVALUATION, EVENTS, Lines, with_nans
from pipeline import recipes
from pipeline.config import parse
from pipeline.training.loop import Outcome, pretrain
from pipeline.training.supervision.interruption import Interruption
from shards.__main__ import main as shards

NARROW = ["--recipe", "features", "--method.width", "12", "--data.threads", "1", "--training.pictures_every", "0"]
NARROW += ["--evaluation.held_back", "0.1", "--evaluation.pictures", "80", "--method.mask.kind", "block"]
LEARNS = [
    *("--training.global_batch", "16", "--training.micro_batch", "16", "--training.steps", "200"),
    *("--evaluation.every", "40", "--evaluation.judge_after", "120"),
    *("--method.batch_norm", "True", "--method.batch_norm_group", "8", "--method.dropout", "0"),
    *("--method.optimiser.learning_rate", "4e-3", "--schedule.warmup_steps", "25", "--schedule.kind", "cosine"),
]
JUDGED = ["--training.steps", "120", "--evaluation.every", "120"]
"""All runs are judged after 120 steps."""
SHORT = ["--training.global_batch", "8", "--training.micro_batch", "8", "--evaluation.judge_after", "120", *JUDGED]
FAILS = {
    "rate too high": [*SHORT, "--method.optimiser.learning_rate", "0.1", "--method.output_gain", "1"],
    "dead maps": [*SHORT, "--method.optimiser.learning_rate", "0.01", "--method.output_gain", "1"],
    "constant output": [*SHORT, "--method.optimiser.learning_rate", "1e-6", "--method.output_gain", "1e-3"],
    "frozen by weight decay": [*SHORT, "--method.optimiser.learning_rate", "1e-3", "--method.optimiser.weight_decay", "200"],
    "noise with labels of noise": [*LEARNS, *JUDGED],
}
"""Settings of runs that do not learn; the last is for pictures of noise in folders drawn at random."""
NOISE = "noise with labels of noise"
SEEDS = range(10)


def write_noise(folder: Path, count: int) -> None:
    """Writes pictures of noise, each into one of ten folders at random."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        pixels = numbers.integers(0, 256, (240, 240, 3), np.uint8)
        kind = folder / f"class{numbers.integers(10)}"
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(kind / f"{number:04d}.jpg", quality=90)


def train(data: Path, run: Path, settings: list[str]) -> Outcome:
    """Trains one run to its end."""
    words = [*NARROW, *settings, "--data.shards", str(data), "--run", str(run), "--monitoring.enabled", "False"]
    return pretrain(parse(recipes.SETTINGS, words), Interruption())


def row(name: str, run: Path, outcome: Outcome, seconds: float) -> str:
    """The line of a run in the table."""
    rows = [with_nans(each) for each in Lines(run / EVALUATION)]
    last, steps = rows[-1], ", ".join(f"{each['l1']:.2f} ({each['step']})" for each in rows)
    reported = sorted({each["problem"] for each in Lines(run / EVENTS) if each.get("event") == "not_learning"})
    dead = ", ".join(f"{last['dead_maps'][layer]} of {last['maps'][layer]}" for layer in ("relu3", "relu4", "relu5"))
    verdict = "accused" if "not learning" in outcome.learned else "not accused"
    cells = [name, steps, f"{last['baselines']['visible_mean']['l1']:.2f}", f"{last['gain']:.1%}", f"{last['output_spread']:.2f}"]
    cells += [f"{last['feature_dimensions']:.1f}", dead, ", ".join(reported) or "nothing", verdict, f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def _runs(photographs: Path, noise: Path) -> Iterator[tuple[str, Path, list[str]]]:
    for seed in SEEDS:
        yield f"learns, seed {seed}", photographs, [*LEARNS, "--seed", str(seed)]
    for name, settings in FAILS.items():
        yield name, noise if name == NOISE else photographs, settings


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of photographs")
    arguments = parser.parse_args()
    columns = ["run", "L1 % (step)", "visible mean", "gain", "output spread", "feature dimensions", "dead in relu3, relu4, relu5"]
    columns += ["reported", "end", "CPU s"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_noise(folder / "noise", 160)
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            shards(["build", str(arguments.pictures), str(folder / "photographs"), "--resize", "256"])
            shards(["build", str(folder / "noise"), str(folder / "noisy")])
        for number, (name, data, settings) in enumerate(_runs(folder / "photographs", folder / "noisy")):
            began = time.process_time()
            with redirect_stderr(io.StringIO()):
                outcome = train(data, folder / f"run{number}", settings)
            print(row(name, folder / f"run{number}", outcome, time.process_time() - began), flush=True)
    print(f"\n{measured_here()}")


if __name__ == "__main__":
    main()
