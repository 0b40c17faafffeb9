"""The update: decided on the device, and its state in the layout of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.config import OptimiserConfig
from pipeline.training.engine.optimiser_state import fused_update, load_state, make_optimiser, state_tensors

KINDS = [OptimiserConfig(learning_rate=0.1), OptimiserConfig(kind="sgd", learning_rate=0.1, momentum=0.9)]


def network() -> nn.Conv2d:
    """A convolution whose weights lie channels last."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def step(layer: nn.Conv2d, optimiser: torch.optim.Optimizer, value: float, limit: float = math.inf) -> None:
    """One update by gradients of which one element is `value`."""
    for number, parameter in enumerate(layer.parameters()):
        values = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) * (number + 1)
        values.view(-1)[0] = value
        parameter.grad = torch.empty_like(parameter).copy_(values)  # in the layout of the weights, as autograd makes it
    fused_update(optimiser, nn.utils.get_total_norm([each.grad for each in layer.parameters() if each.grad is not None]), limit)


@pytest.mark.parametrize("config", KINDS, ids=["adam", "sgd"])
def test_a_first_step_that_is_skipped_leaves_no_trace(config: OptimiserConfig) -> None:
    """torch alone would leave memory that was never written as the momentum of SGD."""
    skipping, plain = network(), network()
    optimisers = [make_optimiser(config, list(each.parameters())) for each in (skipping, plain)]
    step(skipping, optimisers[0], math.inf)
    assert all(map(torch.equal, skipping.parameters(), plain.parameters()))
    for layer, optimiser in zip((skipping, plain), optimisers, strict=True):
        step(layer, optimiser, 0.5)
        step(layer, optimiser, -0.5)
    assert all(map(torch.equal, skipping.parameters(), plain.parameters()))
    first, second = (state_tensors(layer, optimiser) for layer, optimiser in zip((skipping, plain), optimisers, strict=True))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("config", KINDS, ids=["adam", "sgd"])
def test_state_that_was_saved_contiguous_goes_on_with_the_same_bits(config: OptimiserConfig) -> None:
    straight, resumed = network(), network()
    before = make_optimiser(config, list(straight.parameters()))
    step(straight, before, 0.5)
    saved = {name: value.contiguous().clone() for name, value in state_tensors(straight, before).items()}
    resumed.load_state_dict(straight.state_dict())
    after = make_optimiser(config, list(resumed.parameters()))
    load_state(resumed, after, saved)
    step(straight, before, 0.25)
    step(resumed, after, 0.25)
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))


@pytest.mark.parametrize("config", KINDS, ids=["adam", "sgd"])
def test_the_update_is_that_of_torchs_plain_optimiser_on_clipped_gradients(config: OptimiserConfig) -> None:
    ours, plain = network(), network()
    fused = make_optimiser(config, list(ours.parameters()))
    loops = make_optimiser(config, list(plain.parameters()), fused=False)
    for value in (0.5, 30.0, -0.25):
        step(ours, fused, value, limit=2.0)
        for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
            values = torch.linspace(-1, 1, own.numel()).view(own.shape) * (1 if own.dim() > 1 else 2)
            values.view(-1)[0] = value
            other.grad = values
        nn.utils.clip_grad_norm_(plain.parameters(), 2.0)
        loops.step()
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-6)
