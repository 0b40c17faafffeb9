"""Layers that training computes in another way than torch's own modules: the same numbers, forward and backward."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.decoder import Decoder
from pipeline.model.discriminator import Discriminator
from pipeline.model.encoder import Encoder, encode
from pipeline.model.whole_convolution import WholeConv2d, WholeConvTranspose2d, to_memory_format


def through(layer: nn.Module, values: Tensor) -> list[Tensor]:
    """The output, the gradient of the input, and the gradients of the weights, of a loss that tells all outputs apart."""
    given = values.clone().requires_grad_()
    output = layer(given)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), cast(Tensor, given.grad), *(cast(Tensor, each.grad) for each in layer.parameters())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("ours", "torchs", "side"), [(WholeConv2d, nn.Conv2d, 4), (WholeConvTranspose2d, nn.ConvTranspose2d, 1)])
def test_a_whole_convolution_is_torchs_own(
    ours: type[nn.Module], torchs: type[nn.Module], side: int, memory_format: torch.memory_format
) -> None:
    whole, plain = ours(6, 5, 4), torchs(6, 5, 4, bias=False)
    plain.load_state_dict(whole.state_dict())
    to_memory_format(whole, memory_format)
    values = torch.randn(3, 6, side, side).contiguous(memory_format=memory_format)
    for found, expected in zip(through(whole, values), through(plain, values), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)


def test_weights_of_convolutions_are_ordered_and_those_of_products_are_not() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), WholeConv2d(4, 5, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    to_memory_format(network, torch.channels_last)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"layout": "torchvision"}, {"batch_norm": True}, {"pooling": "strided"}], ids=str)
def test_an_encoder_in_training_has_the_bits_of_its_chain_of_layers(settings: dict[str, str]) -> None:
    encoder = Encoder(**{"width": 12, "batch_norm_group": 2, **settings})  # type: ignore[arg-type]
    pictures, found = torch.randn(2, 3, 227, 227), []
    for run in (encode, lambda encoder, pictures: encoder(pictures)):
        encoder.zero_grad()
        maps = run(encoder, pictures)
        (maps * torch.linspace(-1, 1, maps.numel()).view_as(maps)).sum().backward()
        found.append([maps.detach(), *(cast(Tensor, each.grad).clone() for each in encoder.parameters())])
    assert all(map(torch.equal, *found))


def test_a_hooked_encoder_in_training_shows_every_layer() -> None:
    encoder, seen = Encoder("torchvision", width=8), dict[str, Tensor]()
    for name in ("conv1", "relu1", "relu3"):
        encoder.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    encode(encoder, torch.randn(2, 3, 227, 227))
    assert seen["conv1"].min() < 0
    assert torch.equal(seen["relu1"], seen["conv1"].relu())
    assert "relu3" in seen


def test_the_decoder_adds_its_biases() -> None:
    decoder = Decoder(channels=8, target_size=161, proportion=Encoder(width=12).proportion)
    up = cast(nn.ConvTranspose2d, decoder.get_submodule("up1"))
    nn.init.normal_(cast(Tensor, up.bias))
    plain = nn.ConvTranspose2d(8, up.out_channels, 5, 2, 2)
    plain.load_state_dict(up.state_dict())
    values = torch.randn(2, 8, 6, 6)
    assert all(
        torch.allclose(found, expected, atol=1e-4) for found, expected in zip(through(up, values), through(plain, values), strict=True)
    )


def test_real_and_painted_regions_share_a_pass_and_no_statistics() -> None:
    one, two = (Discriminator(32, 4, batch_norm_group=2) for _ in range(2))
    two.load_state_dict(one.state_dict())
    real, painted = torch.randn(4, 3, 32, 32), 3 * torch.randn(4, 3, 32, 32)
    together, apart = one(real, painted), (*two(real), *two(painted))
    for found, expected in zip(together, apart, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    sum(each.sum() for each in together).backward()
    sum(each.sum() for each in apart).backward()
    for found, expected in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(cast(Tensor, found.grad), cast(Tensor, expected.grad), atol=1e-4)
    for found, expected in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
