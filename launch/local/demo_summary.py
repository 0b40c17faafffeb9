"""The end of the demo: what it trained, how well that paints what it never saw, whether anything is missing, and where everything is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from monitoring.run_files import CHECKPOINTS, EVALUATION, EVENTS, HISTORY, PICTURES, SETTINGS, TARGETS, Lines, with_nans
from pipeline.model.inpainting_network import Generator
from pipeline.training.checkpoint.retention import Retention
from pipeline.training.checkpoint.store import folder_name, verify
from shards.counting import counted
from shards.store import Store

ROOT = Path(__file__).resolve().parents[2]
PROBE = "probe.json"
"""Name of the probe's figures in the run folder."""
_BASELINES = {"visible_mean": "mean of the visible part", "constant": "one constant colour"}
_CLASSIFIERS = {"neighbours": "nearest neighbours", "ridge": "ridge regression"}
_CHOSEN = "chosen layer"
_PUBLISHED = {"width": 64, "bottleneck": 4000}


def demo_settings() -> dict[str, Any]:
    """The settings of launch/configs/demo.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "launch/configs/demo.yaml").read_text())
    return found


def demo_setting(name: str) -> int:
    """A training setting of launch/configs/demo.yaml."""
    return int(demo_settings()["training"][name])


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    steps = Retention(Store(str(run / CHECKPOINTS))).steps()
    return steps[-1] if steps else 0


def summary(run: Path, before: int, metrics: Path, origin: str, task: str, seconds: float) -> int:
    """Prints what the demo reached and where everything is; returns 1 where something is missing.

    Args:
        run: the run folder.
        before: step of the newest checkpoint before this call.
        metrics: file with the newest metrics of every rank.
        origin: where the held-back pictures come from.
        task: what the probe was asked.
        seconds: time that this call took.
    """
    history = {row["step"]: with_nans(row)["losses"]["generator"]["total"] for row in Lines(run / HISTORY)}
    losses = [history[step] for step in sorted(history)]
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    step = newest_step(run)
    size = verify(Store(str(run / CHECKPOINTS)), step)
    grids = sorted((run / PICTURES).glob("*.png"))
    worlds = {line.rpartition(" ")[2] for line in metrics.read_text().splitlines() if line.startswith("context_encoder_world_size{")}
    rows = {int(row["step"]): with_nans(row) for row in Lines(run / EVALUATION)}
    print(
        f"""
network      {network(demo_settings()["method"])}
steps        {before} -> {step}, a batch of {demo_setting("global_batch")}; this call took {seconds / 60:.1f} minutes
world size   {", ".join(sorted(worlds))} (from the metrics)
loss         {first:.4f} -> {last:.4f} (mean of the first and of the last tenth of all steps)
held back    {held_back(rows, step, origin)}
probe        {probe(run / PROBE, step, task)}
pictures     {f"{grids[-1]}: holes of held-back pictures, filled" if grids else "none yet"}
checkpoint   {run / CHECKPOINTS / folder_name(step)} ({size / 1e6:.0f} MB, every byte verified)
report       {run / "report.html"}
metrics      {metrics} (while it trains, the addresses are in {run / TARGETS})
history      {run / HISTORY}, evaluations: {run / EVALUATION}, events: {run / EVENTS}, settings: {run / SETTINGS}
again        make demo continues from here; rm -r {run.parent} starts anew"""
    )
    problems = [] if last < first else ["the loss did not fall"]
    if worlds != {"2.0"}:
        problems.append("the metrics do not show two ranks")
    if not grids and step >= demo_setting("pictures_every"):
        problems.append("no picture was drawn")
    if step not in rows:
        problems.append("the last step was not evaluated on held-back pictures")
    elif step >= demo_setting("steps") and not rows[step]["gain"] > 0:
        problems.append("held-back pictures are painted no better than by the stronger baseline")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def network(method: Mapping[str, Any]) -> str:
    """Says what is trained, beside what was published.

    Args:
        method: settings of the inpainting recipe.
    """
    own, published = (weights(each["width"], each["bottleneck"]) for each in (method, _PUBLISHED))
    alone = "" if method["adversarial_weight"] else ", trained without the paper's discriminator"
    return (
        f"inpainting with {own / 1e6:.1f} million weights, one in {published / own:.0f} of the published network's "
        f"(width {method['width']} for {_PUBLISHED['width']}, bottleneck {method['bottleneck']} for {_PUBLISHED['bottleneck']}){alone}"
    )


def weights(width: int, bottleneck: int) -> int:
    """Counts the weights of the generator of the inpainting recipe, without making them."""
    with torch.device("meta"):
        generator = Generator(n_bottleneck=bottleneck, width=width)
    return sum(parameter.numel() for parameter in generator.parameters())


def held_back(rows: Mapping[int, Mapping[str, Any]], step: int, origin: str) -> str:
    """Figures of the held-back pictures beside the baselines and the random start.

    Args:
        rows: evaluations by their steps.
        step: step of the newest checkpoint.
        origin: where the pictures come from.
    """
    if step not in rows:
        return "not evaluated"
    row = rows[step]
    others = {name: row["baselines"][each] for each, name in _BASELINES.items()}
    if 0 in rows and rows[0].get("choice") == row.get("choice"):
        others["random start"] = rows[0]
    beside = "; ".join(f"{name}: {errors(figures)}" for name, figures in others.items())
    compared = f"{abs(row['gain']):.0%} {'less' if row['gain'] > 0 else 'more'} L1 than the stronger baseline"
    return f"{errors(row)} in the holes of {counted(row['pictures'], 'picture')} ({origin})\n             {beside}\n             {compared}"


def errors(figures: Mapping[str, float]) -> str:
    """The two figures that the paper's table 1 has."""
    return f"L1 {figures['l1']:.1f} %, PSNR {figures['psnr']:.1f} dB"


def probe(file: Path, step: int, task: str) -> str:
    """The probe's figures beside those of the random start.

    Args:
        file: figures that launch/evaluate.py wrote.
        step: step of the newest checkpoint.
        task: what was asked.
    """
    if not file.exists() or (found := json.loads(file.read_text()))["encoder"]["step"] != step:
        return "none, because the pictures have no labels"
    pictures = found["pictures"]
    lines = [
        f"{task}; {counted(pictures['count'], 'picture')} of {counted(len(pictures['classes']), 'class')}, frozen output of the encoder"
    ]
    lines += [compared(found, classifier, name) for classifier, name in _CLASSIFIERS.items()]
    return "\n             ".join([*lines, f"all figures: {file}"])


def compared(found: Mapping[str, Any], classifier: str, name: str) -> str:
    """The accuracies of one classifier, and the difference to the best of some random starts with its interval.

    Args:
        found: figures of a probe.
        classifier: name of the classifier in these figures.
        name: name of the classifier for a person.
    """
    rows = [row for row in found["accuracies"] if row["classifier"] == classifier and row["layer"] in (_CHOSEN, "")]
    accuracy: dict[str, float] = {}
    for row in rows:
        kind = row["features"].partition(",")[0]
        accuracy[kind] = max(row["accuracy"][0], accuracy.get(kind, 0.0))
    beside = next(
        row for row in found["differences"] if (row["classifier"], row["layer"], row["to"]) == (classifier, _CHOSEN, "random start")
    )
    points = "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*(100 * each for each in beside["difference"]))
    return (
        f"by {name}: {accuracy['encoder']:.1%}, best random start {accuracy['random start']:.1%}, mean colour "
        f"{accuracy['mean colour']:.1%}; to the best random start {points} (95 %): {beside['verdict']}"
    )
