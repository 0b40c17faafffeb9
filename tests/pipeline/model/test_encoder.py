"""The encoder is AlexNet up to pool5, in both layouts, and its layers can be hooked by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.encoder import Encoder, LocalResponseNorm, proportion

# maps out x (maps in / groups) x kernel x kernel + biases, convolution by convolution
CAFFENET = (
    96 * 3 * 11 * 11 + 96,
    256 * (96 // 2) * 5 * 5 + 256,
    384 * 256 * 3 * 3 + 384,
    384 * (384 // 2) * 3 * 3 + 384,
    256 * (384 // 2) * 3 * 3 + 256,
)
TORCHVISION = (
    64 * 3 * 11 * 11 + 64,
    192 * 64 * 5 * 5 + 192,
    384 * 192 * 3 * 3 + 384,
    256 * 384 * 3 * 3 + 256,
    256 * 256 * 3 * 3 + 256,
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def outputs(encoder: Encoder, size: int = 227, samples: int = 2) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, layer in encoder.named_children():
        layer.register_forward_hook(lambda _, __, values, name=name: found.__setitem__(name, values))
    encoder(torch.randn(samples, 3, size, size))
    return found


@pytest.mark.parametrize(("layout", "expected"), [("caffenet", CAFFENET), ("torchvision", TORCHVISION)])
def test_parameters_are_those_of_the_layout(layout: Any, expected: tuple[int, ...]) -> None:
    encoder = Encoder(layout)
    assert [count(encoder.get_submodule(f"conv{number}")) for number in range(1, 6)] == list(expected)
    assert count(encoder) == sum(expected)
    assert sum(CAFFENET) == 2_334_080
    assert sum(TORCHVISION) == 2_469_696


@pytest.mark.parametrize(
    ("layout", "maps", "first"),
    [("caffenet", (96, 256, 384, 384, 256), 55), ("torchvision", (64, 192, 384, 256, 256), 56)],
)
@pytest.mark.parametrize("pooling", ["max", "strided"])
def test_maps_and_sizes_are_those_of_the_layout(layout: Any, maps: tuple[int, ...], first: int, pooling: Any) -> None:
    found = outputs(Encoder(layout, pooling=pooling))
    sizes = {name: tuple(values.shape[1:]) for name, values in found.items() if name.startswith(("conv", "pool")) and "_" not in name}
    assert sizes == {
        "conv1": (maps[0], first, first),
        "pool1": (maps[0], 27, 27),
        "conv2": (maps[1], 27, 27),
        "pool2": (maps[1], 13, 13),
        "conv3": (maps[2], 13, 13),
        "conv4": (maps[3], 13, 13),
        "conv5": (maps[4], 13, 13),
        "pool5": (256, 6, 6),
    }


def test_layers_stand_in_the_order_of_caffes_reference_network() -> None:
    def layers(encoder: Encoder) -> str:
        return " ".join(name for name, _ in encoder.named_children())

    assert layers(Encoder("caffenet")) == "conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
    assert layers(Encoder("torchvision")) == "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
    normalised = "conv1 bn1 relu1 pool1 conv2 bn2 relu2 pool2 conv3 bn3 relu3 conv4 bn4 relu4 conv5 bn5 relu5 pool5"
    assert layers(Encoder("caffenet", batch_norm=True)) == normalised


def test_strided_convolutions_replace_pooling() -> None:
    encoder = Encoder("caffenet", pooling="strided")
    assert count(encoder) == sum(CAFFENET) + sum(maps * maps * 3 * 3 + maps for maps in (96, 256, 256))
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in encoder)


def test_batch_norm_takes_the_place_of_biases() -> None:
    encoder = Encoder("torchvision", batch_norm=True, batch_norm_group=2)
    assert count(encoder) == sum(TORCHVISION) + (64 + 192 + 384 + 256 + 256)  # a gain and an offset a map where a bias was
    with pytest.raises(ValueError, match="not whole groups of 2"):
        encoder(torch.zeros(3, 3, 227, 227))


def test_a_hook_sees_values_before_and_after_the_relu() -> None:
    found = outputs(Encoder("torchvision"), samples=1)
    for number in range(1, 6):
        before, after = found[f"conv{number}"], found[f"relu{number}"]
        assert before.min() < 0
        assert torch.equal(after, before.clamp(min=0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_response_normalisation_is_torchs(memory_format: torch.memory_format) -> None:
    values = (torch.randn(2, 9, 4, 5) * 200).to(memory_format=memory_format)
    one, two, weight = values.clone().requires_grad_(), values.clone().requires_grad_(), torch.randn(2, 9, 4, 5)
    ours, theirs = LocalResponseNorm()(one), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)(two)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    assert float((ours.detach() / values).min()) < 0.7  # where it matters
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    assert LocalResponseNorm()(values.bfloat16()).dtype == torch.bfloat16


def test_the_start_is_gaussian_with_the_deviation_asked_for() -> None:
    for layer in Encoder(initial_std=0.01).children():
        if isinstance(layer, nn.Conv2d):
            assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
            assert float((layer.weight.detach() / 0.01).pow(4).mean()) == pytest.approx(3, rel=0.1)
            assert layer.bias is not None
            assert not layer.bias.any()


def test_the_scaled_start_keeps_the_size_of_activations() -> None:
    found = outputs(Encoder("torchvision"), samples=1)
    assert all(0.5 < float(found[f"conv{number}"].detach().std()) < 5 for number in range(1, 6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "alexnet"}, "layout: 'alexnet'"),
        ({"pooling": "mean"}, "pooling: 'mean'"),
        ({"initial_std": 0.0}, "initial_std: 0.0"),
        ({"width": 9}, "width: 9 is not a multiple of 6"),
        ({"width": 0}, "width: 0"),
        ({"width": 7, "layout": "torchvision"}, "width: 7 is not a multiple of 2"),
    ],
)
def test_settings_that_can_not_be_used_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Encoder(**settings)


@pytest.mark.parametrize(
    ("layout", "width", "maps"),
    [("caffenet", 12, (12, 32, 48, 48, 32)), ("caffenet", 6, (6, 16, 24, 24, 16)), ("torchvision", 8, (8, 24, 48, 32, 32))],
)
@pytest.mark.parametrize("pooling", ["max", "strided"])
def test_a_width_scales_every_convolution(layout: Any, width: int, maps: tuple[int, ...], pooling: Any) -> None:
    encoder = Encoder(layout, pooling=pooling, width=width)
    found = outputs(encoder)
    assert tuple(found[f"conv{number}"].shape[1] for number in range(1, 6)) == maps
    assert found["pool5"].shape[1:] == (encoder.channels, 6, 6) == (maps[-1], 6, 6)
    assert [name for name, _ in encoder.named_children()] == [name for name, _ in Encoder(layout, pooling=pooling).named_children()]


@pytest.mark.parametrize(("layout", "published"), [("caffenet", 96), ("torchvision", 64)])
def test_the_published_width_is_the_default(layout: Any, published: int) -> None:
    assert proportion(layout, None) == proportion(layout, published) == 1
    torch.manual_seed(1)
    default = Encoder(layout).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(tensor, default[name]) for name, tensor in Encoder(layout, width=published).state_dict().items())
