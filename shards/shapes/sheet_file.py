"""The file that a sheet of masks is drawn into: a new one, or another PNG, never anything else."""

from __future__ import annotations

import os
from pathlib import Path

from shards.errors import ShapesError
from shards.shapes.bank import local_path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_sheet(sheet: str, bank: str) -> None:
    """Refuses to draw a sheet over the bank that it shows, or over any other file that is no PNG.

    Args:
        sheet: path of the PNG.
        bank: URL or path of the bank, which need not be there yet; an empty text for none.

    Raises:
        ShapesError: naming the path.
        StoreError: the bank's URL is none.
    """
    path = Path(sheet).absolute()
    if bank and (file := local_path(bank)) is not None and os.path.realpath(file) == os.path.realpath(path):
        raise ShapesError(f"{sheet}: is the bank of shapes itself, which the sheet of masks would replace. Give the sheet another name")
    if path.is_dir():
        raise ShapesError(f"{sheet}: is a folder. A sheet of masks is one PNG: add its name")
    if not path.parent.is_dir():
        raise ShapesError(f"{sheet}: its folder does not exist. Make it first")
    if not path.exists():
        return
    try:
        begins = _beginning(path)
    except OSError as error:
        raise ShapesError(f"{sheet}: can't be read ({error.strerror}), and only a PNG is replaced. Give the sheet another name") from error
    if begins != _SIGNATURE:
        raise ShapesError(f"{sheet}: is there already and is no PNG. Give the sheet of masks another name")


def _beginning(path: Path) -> bytes:
    if not path.is_file():  # a device or a pipe, which may never answer
        return b""
    with open(path, "rb") as file:
        return file.read(len(_SIGNATURE))
