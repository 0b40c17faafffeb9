"""Folders and tars of pictures for the tests of the builder, and what a finished data set holds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build.build import BuildRequest, BuildResult, build
from shards.build.picture import PictureRules
from shards.build.plan import PlanSettings
from tests.datasets import photographs

SMALL = PlanSettings(PictureRules(resize=64), shard_size=10)


def classed(count: int = 40, classes: int = 4) -> dict[str, bytes]:
    """Name -> JPEG, sorted by class as every data set is when it is handed out."""
    pictures = photographs(count, height=80, width=100)
    each = count // classes
    return {f"class{number // each}/picture {number:03d}.JPEG": data for number, data in enumerate(pictures)}


def write_folder(folder: Path, pictures: Mapping[str, bytes]) -> Path:
    """Writes each picture to its own file."""
    for name, data in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_of(pictures: Mapping[str, bytes]) -> bytes:
    """One uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tar_of_tars(pictures: Mapping[str, bytes]) -> bytes:
    """A tar with one tar a class, as ILSVRC2012 is."""
    inner: dict[str, dict[str, bytes]] = {}
    for name, data in pictures.items():
        head, _, tail = name.partition("/")
        inner.setdefault(head, {})[tail] = data
    return tar_of({f"{head}.tar": tar_of(members) for head, members in inner.items()})


def run(source: Path | str, destination: Path | str, settings: PlanSettings = SMALL, **more: object) -> BuildResult:
    """Builds without a process pool unless `workers` says so."""
    return build(BuildRequest(str(source), str(destination), settings, quiet=True, **more))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def shards_only(folder: Path) -> dict[str, bytes]:
    """The shards and their indexes."""
    return {name: data for name, data in contents(folder).items() if ".tar" in name}


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> bytes of all samples, read with tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return found


def sources(folder: Path) -> list[str]:
    """Source name of every sample, in the order of the data set."""
    return [json.loads(sample["json"])["source"] for sample in members(folder).values()]


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """An array as a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
