"""The grid of pictures, read back from the PNG."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.training.record.grid import GAP, NON_FINITE, save_grid


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def cells(path: Path, rows: int, sizes: list[tuple[int, int]]) -> list[list[NDArray[np.uint8]]]:
    """The pictures of a grid by row and column, for columns of (height, width); found from the bottom left, where no header is."""
    sheet = read(path)
    top = sheet.shape[0] - rows * (sizes[0][0] + GAP)
    found = []
    for row in range(rows):
        left, line = GAP, []
        for height, width in sizes:
            line.append(sheet[top + row * (height + GAP) :][:height, left : left + width])
            left += width + GAP
        found.append(line)
    assert left == sheet.shape[1], "the columns fill the sheet"
    return found


def ramp(n: int, height: int, width: int) -> Tensor:
    """Pictures of which every pixel is another colour."""
    return (torch.arange(n * 3 * height * width) % 256).view(n, 3, height, width) / 255


def as_bytes(picture: Tensor) -> NDArray[np.uint8]:
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_every_picture_stands_in_its_row_and_column_unchanged(tmp_path: Path) -> None:
    columns = {"context": ramp(3, 64, 96), "prediction": ramp(3, 64, 96).flip(0), "truth": ramp(3, 64, 96).flip(1)}
    save_grid(tmp_path / "grid.png", columns)
    found = cells(tmp_path / "grid.png", 3, [(64, 96)] * 3)
    for row in range(3):
        for column, pictures in enumerate(columns.values()):
            np.testing.assert_array_equal(found[row][column], as_bytes(pictures[row]))


def test_the_columns_have_their_names_on_top(tmp_path: Path) -> None:
    white = torch.ones(2, 3, 64, 96)
    save_grid(tmp_path / "one.png", {"context": white, "truth": white})
    save_grid(tmp_path / "two.png", {"context": white, "prediction": white})
    one, two = read(tmp_path / "one.png"), read(tmp_path / "two.png")
    second = GAP + 96 + GAP
    dark: NDArray[np.bool_] = np.all(one < 128, axis=2)
    assert dark[:, :second].any(), "a name above the first column"
    assert dark[:, second:].any(), "and above the second"
    assert not dark[-2 * (64 + GAP) :].any(), "and nowhere on the pictures"
    header = slice(0, one.shape[0] - 2 * (64 + GAP))
    np.testing.assert_array_equal(one[header, :second], two[header, :second])
    assert (one[header, second:] != two[header, second:]).any(), "another name looks different"


def test_a_long_name_makes_room_for_itself(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", {"a name much wider than its pictures": torch.zeros(1, 3, 8, 8), "b": torch.zeros(1, 3, 8, 8)})
    sheet = read(tmp_path / "grid.png")
    black = np.flatnonzero((sheet[-GAP - 4] == 0).all(axis=1))
    assert black[0] == GAP
    assert black[8] - black[7] > 100, "the second column begins behind the name of the first"


def test_smaller_pictures_are_enlarged_to_the_largest(tmp_path: Path) -> None:
    small, large, odd = ramp(1, 32, 48), ramp(1, 64, 96), torch.full((1, 3, 50, 70), 128 / 255)
    save_grid(tmp_path / "grid.png", {"small": small, "large": large, "odd": odd})
    ((first, second, third),) = cells(tmp_path / "grid.png", 1, [(64, 96)] * 3)
    np.testing.assert_array_equal(first, as_bytes(small[0]).repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(second, as_bytes(large[0]))
    assert set(third.ravel().tolist()) == {128}


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (40, 60)])
def test_numbers_that_are_no_colour_are_magenta_and_stay_where_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    grey = torch.full((1, 3, *size), 0.5)
    grey[0, 0, : size[0] // 2, : size[1] // 2] = float("nan")  # in one channel only
    grey[0, 1, size[0] // 2 :, size[1] // 2 :] = float("inf")
    save_grid(tmp_path / "grid.png", {"prediction": grey, "truth": torch.zeros(1, 3, 64, 96)})
    ((found, _),) = cells(tmp_path / "grid.png", 1, [(64, 96)] * 2)
    magenta = (found == NON_FINITE).all(axis=2)
    assert magenta[:32, :48].all()
    assert magenta[32:, 48:].all()
    assert magenta.sum() == 64 * 96 / 2, "and nothing else"


def test_values_outside_the_range_are_cut_off(tmp_path: Path) -> None:
    picture = torch.tensor([-3.0, 0.25, 9.0]).view(1, 3, 1, 1).expand(1, 3, 64, 96)
    save_grid(tmp_path / "grid.png", {"prediction": picture})
    ((found,),) = cells(tmp_path / "grid.png", 1, [(64, 96)])
    assert (found == (0, 64, 255)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_with_a_gradient_can_be_shown_and_is_not_changed(tmp_path: Path, dtype: torch.dtype) -> None:
    pictures = torch.full((1, 3, 64, 96), 2.0, dtype=dtype, requires_grad=True)
    save_grid(tmp_path / "grid.png", {"prediction": pictures * 0.5})
    ((found,),) = cells(tmp_path / "grid.png", 1, [(64, 96)])
    assert (found == 255).all()
    assert (pictures == 2).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pictures_on_a_gpu_can_be_shown(tmp_path: Path) -> None:
    pictures = ramp(2, 64, 96)
    save_grid(tmp_path / "cpu.png", {"truth": pictures})
    save_grid(tmp_path / "gpu.png", {"truth": pictures.cuda()})
    np.testing.assert_array_equal(read(tmp_path / "cpu.png"), read(tmp_path / "gpu.png"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "at least one"),
        ({"truth": torch.zeros(3, 8, 8)}, "'truth'"),
        ({"truth": torch.zeros(1, 1, 8, 8)}, "'truth'"),
        ({"truth": torch.zeros(0, 3, 8, 8)}, "'truth'"),
        ({"truth": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "uint8"),
        ({"context": torch.zeros(2, 3, 8, 8), "truth": torch.zeros(3, 3, 8, 8)}, "'truth': 3"),
    ],
)
def test_what_is_no_grid_is_an_error_that_names_the_column(tmp_path: Path, columns: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_grid(tmp_path / "grid.png", columns)
    assert not (tmp_path / "grid.png").exists()


def test_a_viewer_never_sees_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "grid.png"
    pictures = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    save_grid(path, {"truth": pictures})
    done, seen = threading.Event(), list[tuple[int, ...]]()

    def watch() -> None:
        while not done.is_set():
            seen.append(read(path).shape)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(10):
        save_grid(path, {"truth": pictures})
    done.set()
    watcher.join()
    assert len(seen) > 1
    assert len(set(seen)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"], "nothing temporary is left"


def test_a_failed_write_leaves_the_old_picture_and_nothing_temporary(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    save_grid(path, {"truth": torch.zeros(1, 3, 64, 96)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails a write in its middle, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            save_grid(path, {"truth": torch.ones(1, 3, 64, 96)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]


def test_real_photographs_are_legible_beside_their_reconstruction(tmp_path: Path, data_folder: Path) -> None:
    files = sorted((data_folder / "imagenet_sample").glob("*.JPEG"))[:3]
    truth = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((96, 96)))) for file in files])
    truth = truth.permute(0, 3, 1, 2) / 255
    coarse = torch.nn.functional.avg_pool2d(truth, 4)
    save_grid(tmp_path / "grid.png", {"prediction": coarse, "truth": truth})
    for row, (prediction, original) in enumerate(cells(tmp_path / "grid.png", 3, [(96, 96)] * 2)):
        np.testing.assert_array_equal(original, as_bytes(truth[row]))
        assert abs(prediction.astype(float).mean() - original.astype(float).mean()) < 1
        assert 0 < np.abs(prediction.astype(float) - original).mean() < 40
