"""The grid of pictures, read back from the PNG by the places that the PNG names."""

from __future__ import annotations

import json
import resource
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from monitoring.run_files import GRID_TEXT
from pipeline.recipes.player import Paintings
from pipeline.training.record.grid import HOLE, NON_FINITE, UNJUDGED, save_grid

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """A grid as it is read back.

    Attributes:
        sheet: pixels of the PNG, (height, width, 3).
        places: places of the cells, as the PNG's text has them.
    """

    sheet: Pixels
    places: dict[str, Any]

    def cells(self, name: str) -> list[Pixels]:
        """The pictures of a column, by row."""
        width, height = self.places["cell"]
        left = next(each["left"] for each in self.places["columns"] if each["name"] == name)
        return [self.sheet[row["top"] : row["top"] + height, left : left + width] for row in self.places["rows"]]


def read(path: Path) -> Grid:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return Grid(np.array(image), json.loads(image.info[GRID_TEXT]))


def ramp(n: int, height: int, width: int) -> Tensor:
    """Pictures of many colours, each another one."""
    return (torch.arange(n * 3 * height * width) % 251).view(n, 3, height, width) / 255


def as_bytes(picture: Tensor) -> Pixels:
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def square_hole(n: int, height: int = 64, width: int = 96) -> Tensor:
    mask = torch.zeros(n, 1, height, width, dtype=torch.bool)
    mask[:, :, 16:48, 24:56] = True
    return mask


def painted(n: int = 3, mask: Tensor | None = None) -> Paintings:
    """Ramps with a grey context where pixels are dropped; the prediction is upside down."""
    truth = ramp(n, 64, 96)
    mask = square_hole(n) if mask is None else mask
    return Paintings(truth.masked_fill(mask, 0.5), truth.flip(2), truth, mask)


def is_marked(cell: Pixels) -> NDArray[np.bool_]:
    marked: NDArray[np.bool_] = (cell == HOLE).all(axis=2)
    return marked


def test_every_picture_stands_in_its_row_and_column_and_marks_hide_no_predicted_pixel(tmp_path: Path) -> None:
    paintings = painted()
    save_grid(tmp_path / "grid.png", paintings)
    grid = read(tmp_path / "grid.png")
    assert [each["name"] for each in grid.places["columns"]] == ["context", "prediction", "pasted", "truth", "error"]
    for row in range(3):
        hole = paintings.mask[row, 0].numpy()
        np.testing.assert_array_equal(grid.cells("truth")[row], as_bytes(paintings.truth[row]))
        expected = {"prediction": paintings.prediction, "pasted": torch.where(paintings.mask, paintings.prediction, paintings.truth)}
        for name, pictures in expected.items():
            cell = grid.cells(name)[row]
            marks = is_marked(cell)
            assert marks.sum() == 2 * (32 + 32) + 4, "an outline of one pixel"
            assert not (marks & hole).any(), "outside the hole"
            np.testing.assert_array_equal(cell[~marks], as_bytes(pictures[row])[~marks])


def test_the_hole_of_the_context_is_hatched_and_its_fill_still_shows(tmp_path: Path) -> None:
    paintings = painted(1)
    save_grid(tmp_path / "grid.png", paintings)
    (cell,) = read(tmp_path / "grid.png").cells("context")
    hole = paintings.mask[0, 0].numpy()
    assert 0.1 < is_marked(cell)[hole].mean() < 0.4, "stripes"
    assert (cell[hole & ~is_marked(cell)] == 128).all(), "and the fill between them"
    np.testing.assert_array_equal(cell[~hole & ~is_marked(cell)], as_bytes(paintings.truth[0])[~hole & ~is_marked(cell)])
    for fill in ((123, 117, 104), (117, 104, 123)):
        assert max(abs(one - other) for one, other in zip(HOLE, fill, strict=True)) > 100, "no fill of a recipe looks like a stripe"


def test_without_a_dropped_pixel_nothing_is_marked_and_all_is_judged(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", painted(2, torch.zeros(2, 1, 64, 96, dtype=torch.bool)))
    grid = read(tmp_path / "grid.png")
    assert [each["name"] for each in grid.places["columns"]] == ["context", "prediction", "truth", "error"]
    for name in ("context", "prediction", "truth", "error"):
        assert not any(is_marked(cell).any() for cell in grid.cells(name))
    assert not (grid.cells("error")[0] == UNJUDGED).all(axis=2).any()


def test_the_error_has_one_scale_for_every_grid(tmp_path: Path) -> None:
    def heat(error: float) -> tuple[Pixels, Pixels]:
        truth = torch.full((1, 3, 64, 96), 0.25)
        save_grid(tmp_path / "grid.png", Paintings(truth, truth + error, truth, square_hole(1)))
        (cell,) = read(tmp_path / "grid.png").cells("error")
        hole = square_hole(1)[0, 0].numpy()
        assert len(np.unique(cell[hole], axis=0)) == 1
        assert (cell[~hole] == UNJUDGED).all(), "the context is not judged"
        return cell[hole][0], cell[~hole][0]

    colours = [heat(error)[0].astype(int) for error in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)]
    brightness = [float(colour @ (0.3, 0.6, 0.1)) for colour in colours]
    assert brightness == sorted(brightness), "brighter is worse"
    assert len({tuple(colour) for colour in colours}) == 6, "and beyond the end of the scale all is the same"


def test_the_columns_have_their_names_on_top(tmp_path: Path) -> None:
    white = torch.ones(2, 3, 64, 96)
    save_grid(tmp_path / "grid.png", Paintings(white, white, white, torch.zeros(2, 1, 64, 96, dtype=torch.bool)))
    grid = read(tmp_path / "grid.png")
    dark: NDArray[np.bool_] = np.all(grid.sheet < 128, axis=2)
    top = grid.places["rows"][0]["top"]
    for each in grid.places["columns"]:
        heights = np.flatnonzero(dark[:top, each["left"] : each["left"] + 96].any(axis=1))
        assert len(heights) >= 10, "a name that can be read where the grid is shrunk to half"
    assert not dark[top:, : grid.places["columns"][-1]["left"]].any(), "and nothing is written on the pictures"


def test_tiny_pictures_make_room_for_their_names(tmp_path: Path) -> None:
    tiny = torch.zeros(1, 3, 8, 8)
    save_grid(tmp_path / "grid.png", Paintings(tiny, tiny, tiny, torch.ones(1, 1, 8, 8, dtype=torch.bool)), [5.0], [6.0], "step 1,000")
    grid = read(tmp_path / "grid.png")
    lefts = [each["left"] for each in grid.places["columns"]]
    assert lefts[1] - lefts[0] > 30
    assert grid.cells("truth")[0].shape == (8, 8, 3)


def test_the_figures_of_a_row_are_drawn_beside_it_and_kept(tmp_path: Path) -> None:
    save_grid(tmp_path / "none.png", painted(), title="step 5")
    save_grid(tmp_path / "same.png", painted(), [8.91, 30.0, float("nan")], [12.0, 12.0, 12.0], "step 5")
    save_grid(tmp_path / "other.png", painted(), [8.91, 3.0, float("nan")], [12.0, 12.0, 12.0], "step 5")
    none, same, other = (read(tmp_path / f"{name}.png") for name in ("none", "same", "other"))
    assert none.places["title"] == same.places["title"] == "step 5"
    assert [row["l1"] for row in same.places["rows"]] == [8.91, 30.0, None], "JSON has no NaN"
    assert [row["baseline_l1"] for row in same.places["rows"]] == [12.0] * 3
    assert [row["l1"] for row in none.places["rows"]] == [None] * 3
    right = none.sheet.shape[1]
    assert same.sheet.shape[1] > right + 40
    tops = [row["top"] for row in same.places["rows"]]
    changed = np.flatnonzero((same.sheet != other.sheet).any(axis=(1, 2)))
    assert tops[1] <= changed.min() <= changed.max() < tops[2], "only the figures of the second row differ"
    assert (same.sheet != other.sheet).any(axis=(0, 2))[:right].sum() == 0, "and they stand beside the pictures"


def test_a_row_is_recognised_by_its_truth(tmp_path: Path) -> None:
    save_grid(tmp_path / "first.png", painted())
    changed = painted()
    save_grid(tmp_path / "second.png", replace(changed, prediction=changed.truth, context=changed.truth * 0.5))
    save_grid(tmp_path / "other.png", replace(changed, truth=changed.truth.flip(0)))
    first, second, other = (
        [row["truth"] for row in read(tmp_path / f"{name}.png").places["rows"]] for name in ("first", "second", "other")
    )
    assert first == second == other[::-1]
    assert len(set(first)) == 3


def test_numbers_that_are_no_colour_are_magenta_and_stay_where_they_are(tmp_path: Path) -> None:
    grey, truth = torch.full((1, 3, 64, 96), 0.5), torch.zeros(1, 3, 64, 96)
    grey[0, 0, :32, :48] = float("nan")  # in one channel only
    grey[0, 1, 32:, 48:] = float("inf")
    save_grid(tmp_path / "grid.png", Paintings(truth, grey, truth, torch.zeros(1, 1, 64, 96, dtype=torch.bool)))
    for name in ("prediction", "error"):
        (cell,) = read(tmp_path / "grid.png").cells(name)
        magenta = (cell == NON_FINITE).all(axis=2)
        assert magenta[:32, :48].all()
        assert magenta[32:, 48:].all()
        assert magenta.sum() == 64 * 96 / 2, "and nothing else"


def test_values_outside_the_range_are_cut_off(tmp_path: Path) -> None:
    picture = torch.tensor([-3.0, 0.25, 9.0]).view(1, 3, 1, 1).expand(1, 3, 64, 96)
    save_grid(tmp_path / "grid.png", replace(painted(1, torch.zeros(1, 1, 64, 96, dtype=torch.bool)), prediction=picture))
    assert (read(tmp_path / "grid.png").cells("prediction")[0] == (0, 64, 255)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_with_a_gradient_can_be_shown_and_is_not_changed(tmp_path: Path, dtype: torch.dtype) -> None:
    pictures = torch.full((1, 3, 64, 96), 2.0, dtype=dtype, requires_grad=True)
    save_grid(tmp_path / "grid.png", Paintings(pictures * 0.5, pictures * 0.5, pictures * 0.25, square_hole(1)))
    (cell,) = read(tmp_path / "grid.png").cells("prediction")
    assert (cell[~is_marked(cell)] == 255).all()
    assert (pictures == 2).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pictures_on_a_gpu_can_be_shown(tmp_path: Path) -> None:
    here = painted()
    save_grid(tmp_path / "cpu.png", here)
    save_grid(tmp_path / "gpu.png", Paintings(here.context.cuda(), here.prediction.cuda(), here.truth.cuda(), here.mask.cuda()))
    np.testing.assert_array_equal(read(tmp_path / "cpu.png").sheet, read(tmp_path / "gpu.png").sheet)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"truth": torch.zeros(3, 8, 8)}, "truth: .* is not float"),
        ({"context": torch.zeros(3, 1, 8, 8)}, "context: .* is not float"),
        ({"truth": torch.zeros(0, 3, 8, 8)}, "truth"),
        ({"prediction": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, "prediction: torch.uint8"),
        ({"mask": torch.zeros(3, 1, 8, 8)}, "mask: .* is not bool"),
        ({"context": torch.zeros(2, 3, 64, 96)}, "context has 2 pictures, truth 3"),
        ({"prediction": torch.zeros(3, 3, 32, 96)}, r"prediction has pictures of the size \(32, 96\), truth of \(64, 96\)"),
    ],
)
def test_what_is_no_painting_is_an_error_that_names_the_tensor(tmp_path: Path, wrong: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_grid(tmp_path / "grid.png", replace(painted(), **wrong))
    with pytest.raises(ValueError, match="baseline_l1 has 1 figure for 3 pictures"):
        save_grid(tmp_path / "grid.png", painted(), [1.0, 2.0, 3.0], [1.0])
    assert not (tmp_path / "grid.png").exists()


def test_a_viewer_never_sees_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "grid.png"
    noise = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    pictures = Paintings(noise, noise, noise, square_hole(4))
    save_grid(path, pictures)
    done, seen = threading.Event(), list[tuple[int, ...]]()

    def watch() -> None:
        while not done.is_set():
            seen.append(read(path).sheet.shape)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(4):
        save_grid(path, pictures)
    done.set()
    watcher.join()
    assert len(seen) > 1
    assert len(set(seen)) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["grid.png"], "nothing temporary is left"


def test_a_failed_write_leaves_the_old_picture_and_nothing_temporary(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    save_grid(path, painted(1))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails a write in its middle, as a full disk does
    try:
        with pytest.raises(OSError, match="too large"):
            save_grid(path, painted(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]


def test_real_photographs_are_legible_beside_their_reconstruction(tmp_path: Path, data_folder: Path) -> None:
    files = sorted((data_folder / "imagenet_sample").glob("*.JPEG"))[:3]
    truth = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((96, 64)))) for file in files])
    truth = truth.permute(0, 3, 1, 2) / 255
    coarse = torch.nn.functional.avg_pool2d(truth, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    save_grid(tmp_path / "grid.png", Paintings(truth.masked_fill(square_hole(3), 0.45), coarse, truth, square_hole(3)))
    grid = read(tmp_path / "grid.png")
    for row, (prediction, original) in enumerate(zip(grid.cells("prediction"), grid.cells("truth"), strict=True)):
        np.testing.assert_array_equal(original, as_bytes(truth[row]))
        unmarked = ~is_marked(prediction)
        difference = prediction[unmarked].astype(float) - original[unmarked]
        assert abs(difference.mean()) < 2
        assert 0 < np.abs(difference).mean() < 40
