"""The benchmark of the training step: the textbook's transcription has the losses of the pipeline, and the verdict on them can fail."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import step_layers, step_memory, step_side
from benchmarks.step_run import OURS, TEXTBOOK, Settings, write_given
from benchmarks.step_tables import loss_lines

SMALL = (Settings("features", batch=2, threads=1, width=6), Settings("inpainting", batch=16, threads=1, width=4))


@pytest.mark.parametrize("settings", SMALL, ids=lambda settings: settings.recipe)
def test_the_transcription_gives_the_losses_of_the_pipeline(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_ENCODER_DATA", str(tmp_path))  # smooth noise, the same on every machine
    write_given(tmp_path, settings.config())
    found = {}
    for kind in (OURS, TEXTBOOK):
        with step_side.opened(settings.wish(kind, tmp_path, compares=True)) as side:
            found[kind] = step_side.losses(side, 3)["losses"]
    for number, (ours, theirs) in enumerate(zip(found[OURS], found[TEXTBOOK], strict=True)):
        for name, value in theirs.items():
            # roundings grow tenfold in a step of so small a discriminator
            assert ours[name] == pytest.approx(value, rel=(1e-4, 1e-2, 0.1)[number]), f"{name} in step {number}"


def test_time_and_memory_of_a_step_are_divided_without_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_ENCODER_DATA", str(tmp_path))
    settings = SMALL[1]
    write_given(tmp_path, settings.config())
    with step_side.opened(settings.wish(OURS, tmp_path)) as side:
        layers = step_layers.measured(side, 1)
        memory = step_memory.measured(side, 1, eager=True)
    rows = {name: (forward, backward) for name, forward, backward in layers["rows"]}
    parameters = {player: list(network.parameters()) for player, network in side.networks.items()}
    for player, network in side.networks.items():
        for name, layer in network.named_modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                assert min(rows[f"{player}.{name}"]) > 0, f"{player}.{name} has no forward or no backward"
    assert sum(map(sum, rows.values())) <= layers["step"]
    sizes = {player: sum(each.nbytes for each in found) for player, found in parameters.items()}
    assert memory["weights"] > sum(sizes.values())  # with the statistics of batch norm
    assert max(sizes.values()) <= memory["gradients"] <= sum(sizes.values())
    assert 2 * sum(sizes.values()) <= memory["optimiser"] <= 2.1 * sum(sizes.values())
    assert memory["activations"] > 8 * 4 * 64 * 64 * 4  # at least a part of the first maps


@pytest.mark.parametrize(
    ("ours", "differs"), [([1.0, 2.0], False), ([1.002, 2.0], True), ([1.0, 2.09], False), ([1.0, 2.11], True), ([1.0, math.nan], True)]
)
def test_losses_beyond_the_tolerance_are_found(ours: list[float], differs: bool) -> None:
    steps = {OURS: ours, TEXTBOOK: [1.0, 2.0], "nudged": [1.0, 2.02]}
    (line,) = loss_lines("features", {side: [{"painter/total": value} for value in values] for side, values in steps.items()})
    assert line.differs is differs
