"""LPIPS against a reference in float64 that was written on its own, with random weights; weights that can't be used are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.evaluation.inpainting.lpips import read_lpips
from pipeline.evaluation.inpainting.parts import InpaintingError

CPU = torch.device("cpu")
CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state as `lpips.LPIPS(net="alex")` has it, with random weights; it names the linear layers twice, and more that is not needed."""
    random = torch.Generator().manual_seed(seed)
    found = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for layer, (number, (maps, inputs, kernel)) in enumerate(CONVOLUTIONS.items()):
        found[f"net.slice{layer + 1}.{number}.weight"] = torch.randn(maps, inputs, kernel, kernel, generator=random) / inputs**0.5 / kernel
        found[f"net.slice{layer + 1}.{number}.bias"] = 0.1 * torch.randn(maps, generator=random)
        found[f"lin{layer}.model.1.weight"] = found[f"lins.{layer}.model.1.weight"] = torch.rand(1, maps, 1, 1, generator=random)
    return found


def reference(weights: dict[str, torch.Tensor], first: np.ndarray, second: np.ndarray) -> float:
    """LPIPS of two pictures float64 (3, H, W) in [0, 1], with convolutions as products of matrices."""

    def features(picture: np.ndarray) -> list[np.ndarray]:
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        values = (picture * 2 - 1 - shift[:, None, None]) / scale[:, None, None]
        found = []
        for number, (stride, padding) in zip(CONVOLUTIONS, ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), strict=True):
            if number in (3, 6):
                values = np.lib.stride_tricks.sliding_window_view(values, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
            layer = list(CONVOLUTIONS).index(number) + 1
            kernel = weights[f"net.slice{layer}.{number}.weight"].double().numpy()
            padded = np.pad(values, ((0, 0), (padding, padding), (padding, padding)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
            values = np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))
            values = np.maximum(values + weights[f"net.slice{layer}.{number}.bias"].double().numpy()[:, None, None], 0)
            found.append(values / (np.sqrt((values**2).sum(0)) + 1e-10))
        return found

    total = 0.0
    for layer, (one, other) in enumerate(zip(features(first), features(second), strict=True)):
        weight = weights[f"lin{layer}.model.1.weight"].double().numpy().reshape(-1, 1, 1)
        total += float((weight * (one - other) ** 2).sum(0).mean())
    return total


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_distances_are_those_of_the_definition(tmp_path: Path, form: str) -> None:
    weights, path = state(), tmp_path / f"lpips.{form}"
    if form == "safetensors":  # here with torchvision's names
        names = {name: f"features.{name.split('.', 2)[2]}" for name in weights if "slice" in name}
        save_file({names.get(name, name): value.clone() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    lpips = read_lpips(path, CPU)
    pictures = torch.rand(3, 3, 64, 72, generator=torch.Generator().manual_seed(1))
    found = lpips.distances(lpips.features(pictures), lpips.features(pictures.flip(0)))
    assert found[0] == pytest.approx(reference(weights, pictures[0].double().numpy(), pictures[2].double().numpy()), rel=1e-5)
    assert found[1] == 0  # the one in the middle is compared with itself


def test_weights_that_can_not_be_used_are_named_with_the_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InpaintingError, match=r"none\.pt: no such file of LPIPS's weights.*Make it where the package lpips is installed"):
        read_lpips(tmp_path / "none.pt", CPU)
    lacking, other = state(), state()
    del lacking["lin3.model.1.weight"]
    other["net.slice2.3.weight"] = other["net.slice2.3.weight"][:, :3]
    for name, weights, expected in (("lacking", lacking, "nothing for lin3"), ("other", other, r"\(192, 3, 5, 5\) for 3\.weight")):
        torch.save(weights, tmp_path / f"{name}.pt")
        with pytest.raises(InpaintingError, match=rf"{name}\.pt: has {expected}.*in LPIPS with AlexNet"):
            read_lpips(tmp_path / f"{name}.pt", CPU)
    torch.save({"code": print}, tmp_path / "code.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 40)
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("code.pt", "cut.pt", "cut.safetensors", "list.pt"):
        with pytest.raises(InpaintingError, match=rf"{name}: not a file of tensors"):
            read_lpips(tmp_path / name, CPU)
