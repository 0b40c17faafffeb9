"""Label pictures of every kind of PNG, written chunk by chunk, because Pillow writes some of the kinds and none of the damage."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(labels: np.ndarray, colour: int = PALETTE, depth: int = 8, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of indices; in colours every channel holds the index. `size` is what the header claims, `extra` stands before the pixels."""
    height, width = labels.shape
    if depth == 16:
        rows = np.repeat(labels[..., None], CHANNELS[colour], axis=2).astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = np.repeat(labels[..., None], CHANNELS[colour], axis=2).astype(np.uint8).reshape(height, -1)
    else:
        bits = (labels[..., None] >> np.arange(depth)[::-1] & 1).reshape(height, -1).astype(np.uint8)
        rows = np.packbits(bits, axis=1)
    pixels = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()
    claimed = size or (width, height)
    header = struct.pack(">IIBBBBB", *claimed, depth, colour, 0, 0, 0)
    table = chunk(b"PLTE", bytes(range(3)) * (1 << depth)) if colour == PALETTE else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + table + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def square(index: int = 1, side: int = 30, height: int = 50, width: int = 60) -> np.ndarray:
    """One square object, 5 pixels from the upper left corner."""
    labels = np.zeros((height, width), np.int64)
    labels[5 : 5 + side, 5 : 5 + side] = index
    return labels


def voc(folder: Path) -> Path:
    """A folder in the layout of PASCAL VOC with three pictures: a of two objects and void, b of one object, c of none."""
    objects, lists = folder / "SegmentationObject", folder / "ImageSets" / "Segmentation"
    objects.mkdir(parents=True)
    lists.mkdir(parents=True)
    first = square(2) + square(0)
    first[10:40, 38:58] = 1
    first[:, 59] = 255
    for name, labels in (("a", first), ("b", square(7, 40)), ("c", square(255))):
        (objects / f"{name}.png").write_bytes(png(labels))
    for name, names in (("train", "a\nc\n"), ("val", "b\n"), ("gone", "a\nx\ny\n"), ("empty", "\n")):
        (lists / f"{name}.txt").write_text(names)
    (folder / "JPEGImages").mkdir()
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    return folder
