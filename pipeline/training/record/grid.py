"""A PNG grid of what the networks paint: one row a sample, one column a kind of picture, the names on top.

The file appears whole or not at all, so that an image viewer on the folder never opens half a picture. Values that are no
colour are magenta: a broken network is something to see, not a reason to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shards.local_files import whole_file

GAP = 4
"""Pixels between two pictures and around all of them."""
NON_FINITE = (255, 0, 255)
_PAPER, _INK = (255, 255, 255), (0, 0, 0)


def save_grid(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Writes one PNG.

    Args:
        path: path of the file; its folder is made when missing.
        columns: name -> float (n, 3, H, W) in [0, 1], on any device. Sizes may differ: smaller pictures are enlarged to the
            largest height and width, by repeating pixels where both are whole multiples, else bilinearly.
            Values outside [0, 1] are clipped, non-finite values are magenta.

    Raises:
        ValueError: there are no columns, a column has another shape, or columns have different n.
        OSError: the file can't be written.
    """
    _check(columns)
    height = max(pictures.shape[2] for pictures in columns.values())
    width = max(pictures.shape[3] for pictures in columns.values())
    font = ImageFont.load_default()
    boxes = {name: font.getbbox(name) for name in columns}
    header = GAP + max(int(box[3]) for box in boxes.values())
    widths = [max(width, int(box[2]) + GAP) for box in boxes.values()]  # a long name makes room for itself
    rows = len(next(iter(columns.values())))
    sheet = Image.new("RGB", (GAP + sum(each + GAP for each in widths), header + GAP + rows * (height + GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = GAP
    for (name, pictures), column_width in zip(columns.items(), widths, strict=True):
        draw.text((left, GAP), name, fill=_INK, font=font)
        for row, pixels in enumerate(_pixels(pictures, height, width)):
            sheet.paste(Image.fromarray(pixels.numpy()), (left, header + GAP + row * (height + GAP)))
        left += column_width + GAP
    _write(sheet, path)


def _check(columns: Mapping[str, Tensor]) -> None:
    if not columns:
        raise ValueError("a grid needs at least one column")
    rows = {name: len(pictures) for name, pictures in columns.items() if pictures.ndim == 4}
    for name, pictures in columns.items():
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape or not pictures.is_floating_point():
            raise ValueError(f"column {name!r}: {pictures.dtype} {tuple(pictures.shape)} is not float (n, 3, H, W)")
    if len(set(rows.values())) > 1:
        raise ValueError(f"the columns have different numbers of pictures: {rows}")


def _pixels(pictures: Tensor, height: int, width: int) -> Tensor:
    """Converts pictures to uint8 (n, height, width, 3) on the CPU."""
    pictures = pictures.detach().to("cpu", torch.float32)
    broken = ~pictures.isfinite().all(dim=1, keepdim=True)
    pictures = torch.where(broken, torch.zeros(()), pictures).clamp(0, 1)
    if pictures.shape[2:] != (height, width):
        is_multiple = height % pictures.shape[2] == 0 and width % pictures.shape[3] == 0
        pictures = F.interpolate(pictures, (height, width), mode="nearest" if is_multiple else "bilinear")
        broken = F.interpolate(broken.float(), (height, width), mode="nearest") > 0
    colours = (pictures * 255).round().to(torch.uint8)
    return torch.where(broken, torch.tensor(NON_FINITE, dtype=torch.uint8).view(3, 1, 1), colours).permute(0, 2, 3, 1).contiguous()


def _write(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False, one_writer=True) as file:
        sheet.save(file, format="PNG")
