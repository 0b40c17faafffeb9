"""Labels of a data set reach its batches and evaluations, whichever way the data set was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.stream.fixed import choice_of, held_back_choice
from pipeline.stream.loader import StreamConfig, StreamLoader
from shards.__main__ import main
from shards.dataset.manifest import NAME, load
from tests.datasets import photographs
from tests.shards.trees import tar_of, write_folder

LABELS = [1, 0, 1, -1, 0, 1, 0, -1]


def indexed(folder: Path, labels: list[int | None], *options: str) -> Path:
    members: dict[str, bytes] = {}
    for number, (data, label) in enumerate(zip(photographs(len(labels), 32, 32), labels, strict=True)):
        members |= {f"{number}.jpg": data, **({} if label is None else {f"{number}.cls": b"%d" % label})}
    write_folder(folder, {"0.tar": tar_of(members)})
    assert main(["index", str(folder), *options]) == 0
    return folder


def of_an_older_index(folder: Path) -> Path:
    """A manifest of before labels were counted."""
    table = json.loads((indexed(folder, list(LABELS)) / NAME).read_bytes())
    settings = {key: value for key, value in table["settings"].items() if key not in {"labelled", "key_ends"}}
    (folder / NAME).write_text(json.dumps({**table, "settings": {**settings, "index_format": 1}}))
    return folder


def with_names(folder: Path) -> Path:
    return indexed(write_folder(folder, {"classnames.txt": b"cat\ndog\n"}), list(LABELS))


def built(folder: Path) -> Path:
    pictures = {
        f"{'dog' if label else 'cat'}/{number}.jpg": data
        for number, (data, label) in enumerate(zip(photographs(8, 32, 32), LABELS, strict=True))
    }
    assert main(["build", str(write_folder(folder / "in", pictures)), str(folder / "out"), "--workers", "0"]) == 0
    return folder / "out"


def loader(*folders: Path) -> StreamLoader:
    sources = {f"source{number}": SourceConfig(shards=str(folder)) for number, folder in enumerate(folders)}
    where = {"shards": str(folders[0])} if len(folders) == 1 else {"sources": sources}
    data = DataConfig(**where, crop="center", flip=False, threads=1, lanes=1, shuffle_block=4)  # type: ignore[arg-type]
    return StreamLoader(StreamConfig(data, image_size=32, global_batch=4, epochs=1))


@pytest.mark.parametrize("make", [lambda folder: indexed(folder, list(LABELS)), with_names, of_an_older_index])
def test_labels_of_indexed_tars_reach_batches(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with loader(make(tmp_path)) as stream:
        found = {}
        for batch in stream:
            assert batch.labels is not None
            found |= dict(zip(batch.sample_ids.tolist(), batch.labels.tolist(), strict=True))
        choice = choice_of(stream, stream.datasets[0], 8)
    assert found == dict(enumerate(LABELS))
    assert choice.labelled


def test_labels_of_a_built_set_are_as_before(tmp_path: Path) -> None:
    with loader(built(tmp_path)) as stream:
        classes = load(str(tmp_path / "out")).classes
        assert [len(batch.labels) for batch in stream if batch.labels is not None] == [4, 4]
        assert (classes, choice_of(stream, stream.datasets[0], 8).labelled) == (("cat", "dog"), True)


@pytest.mark.parametrize(("labels", "options"), [([-1] * 4, ()), ([None] * 4, ()), ([0, 1, 0, 1], ("--labels", "none"))])
def test_a_set_without_labels_gives_none(tmp_path: Path, labels: list[int | None], options: tuple[str, ...]) -> None:
    with loader(indexed(tmp_path, labels, *options)) as stream:
        assert next(iter(stream)).labels is None
        assert not choice_of(stream, stream.datasets[0], 4).labelled


def test_class_numbers_without_names_are_not_shared_by_two_sets(tmp_path: Path) -> None:
    """A batch holds the numbers of each; an evaluation over both would take class 0 of one for class 0 of the other."""
    with loader(indexed(tmp_path / "a", list(LABELS)), indexed(tmp_path / "b", list(LABELS))) as stream:
        assert next(iter(stream)).labels is not None
        assert not held_back_choice(stream, 8).labelled
    with loader(with_names(tmp_path / "c"), with_names(tmp_path / "d")) as stream:
        assert held_back_choice(stream, 8).labelled
