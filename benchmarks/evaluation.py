"""Measures the share of a run's time that its evaluations take at their default interval.

Trains a few steps of each configuration with the real loop on labelled pictures (labels cost one more forward pass), and evaluates as often
as is possible. The share is that of one evaluation in the steps between two, both by the process's CPU time on one thread. Prints one
Markdown table.

    python -m benchmarks.evaluation PICTURES
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.machine import measured_here
from pipeline import recipes
from pipeline.config import Config, parse
from pipeline.training.held_back.evaluation import Evaluation
from pipeline.training.loop import pretrain
from pipeline.training.step import StepResult, TrainStep
from pipeline.training.supervision.interruption import Interruption
from shards.__main__ import main as shards

MOST = 0.02
"""Largest share that evaluations may take."""
CONFIGS = {"launch/configs/small.yaml": 6, "launch/configs/inpainting.yaml": 4, "launch/configs/features.yaml": 2}
"""Configuration -> steps that are trained."""


def measure(config: Config[Any]) -> tuple[float, float]:
    """Trains with an evaluation after each step.

    Returns:
        CPU seconds of a step and of an evaluation, the medians; the first of each is left out.
    """
    taken: dict[str, list[float]] = {"step": [], "evaluation": []}
    step, evaluate = TrainStep.__call__, Evaluation.__call__

    def timed_step(self: TrainStep, *arguments: Any) -> StepResult:
        began = time.process_time()
        result = step(self, *arguments)
        taken["step"].append(time.process_time() - began)
        return result

    def timed_evaluation(self: Evaluation) -> dict[str, Any]:
        for samples in self._samples.values():
            samples.result()  # pictures are read once a run
        began = time.process_time()
        row = evaluate(self)
        taken["evaluation"].append(time.process_time() - began)
        return row

    TrainStep.__call__, Evaluation.__call__ = timed_step, timed_evaluation  # type: ignore[method-assign]
    try:
        pretrain(config, Interruption())
    finally:
        TrainStep.__call__, Evaluation.__call__ = step, evaluate  # type: ignore[method-assign]
    return statistics.median(taken["step"][1:]), statistics.median(taken["evaluation"][1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of a folder of pictures for each class")
    arguments = parser.parse_args()
    print("| configuration | steps between evaluations | pictures | CPU s a step | CPU s an evaluation | share | at most 2 % |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
            code = shards(["build", str(arguments.pictures), f"{folder}/shards", "--resize", "350"])
        if code:
            raise SystemExit(said.getvalue())
        for name, steps in CONFIGS.items():
            settings = ["--config", name, "--data.shards", f"{folder}/shards", "--training.precision", "fp32", "--training.threads", "1"]
            settings += ["--data.threads", "1", "--monitoring.enabled", "False", "--training.pictures_every", "0"]
            usual = parse(recipes.SETTINGS, settings).evaluation
            settings += ["--run", f"{folder}/{Path(name).stem}", "--training.steps", str(steps), "--evaluation.every", "1"]
            a_step, an_evaluation = measure(parse(recipes.SETTINGS, settings))
            share = an_evaluation / (an_evaluation + usual.every * a_step)
            verdict = "yes" if share < MOST else "no"
            print(
                f"| {name} | {usual.every} | {usual.pictures} | {a_step:.2f} | {an_evaluation:.2f} | {share:.2%} | {verdict} |", flush=True
            )
    print(f"\n{measured_here()}")


if __name__ == "__main__":
    main()
