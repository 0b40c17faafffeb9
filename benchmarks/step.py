"""How fast is a training step, beside a textbook's transcription of the same networks and losses?

Every side is a process of its own on the same cores, told by turns to take some steps: ours is the pipeline's own step, as the training
loop calls it; the transcription is benchmarks/transcription.py; a checkout of another commit may be a third. On a GPU ours computes in
bfloat16. Ends with 1 if the losses of both differ by more than the tolerance; timings have no say in it. benchmarks/README.md has the
method.

    python -m benchmarks.step
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import step_tables as tables
from benchmarks.step_run import BEFORE, OURS, ROOT, TEXTBOOK, Child, Settings, SideEnded, can_compile, photographs, write_given
from benchmarks.step_tables import Measured
from pipeline.training.reporting.flops import flops_per_image

RECIPES = ("features", "inpainting")
_LOSS_BATCH = 16  # the first steps of smaller batches are chaotic


def measure(settings: Settings, options: argparse.Namespace) -> Measured:
    """Measures a recipe: all sides in turns, the one that begins rotating."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="step-")))
        flops = flops_per_image(write_given(folder, settings.config()))
        checkouts = {OURS: ROOT, TEXTBOOK: ROOT, **({BEFORE: options.before} if options.before else {})}
        sides = {kind: stack.enter_context(Child(checkout, settings.wish(kind, folder, checkout))) for kind, checkout in checkouts.items()}
        found = Measured(settings, flops, {kind: [] for kind in sides}, device=sides[OURS].facts["device"])
        for kind, side in sides.items():
            side.ask("steps", 20 if found.device else 1)  # the first steps choose algorithms and compile
            # before anything but steps is asked for, so that it is their peak
            found.memory[kind] = side.ask("memory", 1) | ({"program": 0, "batches": 0} if found.device else side.facts)
        order, ceilings = list(sides), list[float]()
        for _ in range(options.rounds):
            for kind in order:
                seconds = sides[kind].ask("steps", options.steps)["seconds"]
                found.rates[kind].append(options.steps * settings.batch / seconds)
            ceilings.append(sides[OURS].ask("ceiling", 3)["flops"])
            order = [*order[1:], order[0]]
        found.ceiling = statistics.median(ceilings)
    return found


def take_losses(settings: Settings, count: int) -> dict[str, list[dict[str, float]]]:
    """Takes the same steps on ours, the transcription, and the transcription from weights that differ by a millionth.

    Returns:
        The losses of every step by `player/part`: of `ours`, `transcription` and `nudged`.
    """
    with tempfile.TemporaryDirectory(prefix="step-") as name:
        write_given(Path(name), settings.config())
        found = {}
        for label, kind in ((OURS, OURS), (TEXTBOOK, TEXTBOOK), ("nudged", TEXTBOOK)):
            with Child(ROOT, settings.wish(kind, Path(name), compares=True, nudged=label == "nudged")) as side:
                found[label] = side.ask("losses", count)["losses"]
    return found


def profile_layers(settings: Settings) -> dict[str, dict[str, Any]]:
    """Profiles steps of ours and of the transcription, uncompiled."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="step-") as name:
        write_given(Path(name), settings.config())
        for kind in (OURS, TEXTBOOK):
            with Child(ROOT, settings.wish(kind, Path(name))) as side:
                found[kind] = side.ask("layers", 3)
    return found


def _arguments(arguments: Sequence[str] | None, on_gpu: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="only this recipe")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side (default: 7; 0 measures no times and no memory)")
    parser.add_argument("--steps", type=int, default=50 if on_gpu else 2, help="steps of a measurement (default: 2, on a GPU 50)")
    parser.add_argument("--batch", type=int, help="pictures a step (default: 32 for features and 64 for inpainting, on a GPU 64)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if on_gpu else "fp32", help="training.precision of ours")
    best = "reduce-overhead" if on_gpu and can_compile() else "off"
    parser.add_argument("--compile", default=best, metavar="MODE", help=f"training.compile of ours (default here: {best})")
    parser.add_argument("--width", type=int, help="maps of the first convolution, for quick trials (default: the published ones)")
    parser.add_argument("--before", type=Path, help="checkout of another commit, measured in the same run")
    parser.add_argument("--losses", type=int, default=50, help="steps whose losses are compared, in fp32 (default: 50; 0 compares none)")
    parser.add_argument("--layers", action="store_true", help="also show where the time goes, layer by layer")
    parser.add_argument("--output", type=Path, help="file for the tables, beside standard output")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.losses) < 0 or min(options.steps, options.threads, options.batch or 1) < 1:
        parser.error("--rounds and --losses must be 0 or more; --steps, --threads and --batch 1 or more")
    if options.before is not None and not (options.before / "pipeline" / "training" / "step.py").is_file():
        parser.error(f"--before: {options.before} is no checkout, because it has no pipeline/training/step.py")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is asked for and prints the tables."""
    on_gpu = torch.cuda.is_available()
    options = _arguments(arguments, on_gpu)
    measured, losses, layers = list[Measured](), dict[str, Mapping[str, Any]](), dict[str, Mapping[str, Any]]()
    try:
        for recipe in options.recipe or RECIPES:
            batch = options.batch or (64 if on_gpu or recipe == "inpainting" else 32)
            settings = Settings(recipe, batch, options.threads, options.precision, options.compile, options.width)
            if options.losses:
                print(f"{recipe}: losses ...", file=sys.stderr, flush=True)
                plain = Settings(recipe, options.batch or _LOSS_BATCH, options.threads, width=options.width)
                losses[recipe] = take_losses(plain, options.losses)
            if options.rounds:
                print(f"{recipe}: rounds ...", file=sys.stderr, flush=True)
                measured.append(measure(settings, options))
            if options.layers:
                print(f"{recipe}: layers ...", file=sys.stderr, flush=True)
                layers[recipe] = profile_layers(Settings(recipe, batch, options.threads, options.precision, width=options.width))
    except SideEnded as error:
        raise SystemExit(f"benchmarks.step: {error}; its own words are above") from None
    compared = [line for recipe, found in losses.items() for line in tables.loss_lines(recipe, found)]
    where = "smooth noise, because there are no photographs" if photographs() is None else "random resized crops of photographs"
    text = tables.whole(measured, compared, layers, options, where)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return int(any(line.differs for line in compared))


if __name__ == "__main__":
    sys.exit(main())
