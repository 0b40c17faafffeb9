"""Names with a meaning: what is hidden or a tool's own, and which places are splits of one data set."""

from __future__ import annotations

import pytest

from shards.layout import Splits, left_out_part, wanted_kind


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (".ipynb_checkpoints/0.jpg", ".ipynb_checkpoints"),
        ("cat/@eaDir/0.jpg/THUMB_M.jpg", "cat/@eaDir"),
        ("__MACOSX/cat/._0.jpg", "__MACOSX"),
        ("a/.Trash-1000/files/x.jpg", "a/.Trash-1000"),
        ("lost+found", "lost+found"),
        ("System Volume Information/x.jpg", "System Volume Information"),
        ("$Recycle.Bin/x.jpg", "$Recycle.Bin"),
        ("cat/._0.jpg", "cat/._0.jpg"),
    ],
)
def test_hidden_and_tool_names_are_known_wherever_they_stand(path: str, part: str) -> None:
    assert left_out_part(path) == part


@pytest.mark.parametrize("path", ["cat/0.jpg", "./cat/../0.jpg", "a.b/c.d.jpg", "lost/found.jpg", "x@eaDir/0.jpg", "__MACOSX2/0.jpg", ""])
def test_other_names_are_not_left_out(path: str) -> None:
    assert left_out_part(path) == ""


@pytest.mark.parametrize(
    ("places", "kinds"),
    [
        (["train/cat", "val/cat"], ["train", "val"]),
        (["train2017", "val2017", "test2017"], ["test", "train", "val"]),
        (["data/images/Training", "data/images/Validation"], ["train", "val"]),
        (["bottle/train/good", "bottle/test/good", "cable/train", "cable/test"], ["test", "train"]),
        (["ILSVRC2012_img_train/n01", "ILSVRC2012_img_val/n01"], ["train", "val"]),
        (["set-train-000000", "set-train-000001", "set-dev-000000"], ["dev", "train"]),
        (["trainA", "testA"], ["test", "train"]),
    ],
)
def test_splits_are_recognised_where_they_stand_beside_each_other(places: list[str], kinds: list[str]) -> None:
    splits = Splits(places)
    assert list(splits.kinds) == kinds
    assert {splits.of(place)[0] for place in places} == set(kinds)


@pytest.mark.parametrize(
    "places",
    [
        ["aeroplane", "bicycle", "train"],  # a class of PASCAL VOC
        ["test_tube", "train_station"],
        ["train/cat", "train/dog"],
        ["a/train", "b/val"],
        ["trained", "tested"],
    ],
)
def test_classes_are_not_taken_for_splits(places: list[str]) -> None:
    assert Splits(places).kinds == ()
    assert all(Splits(places).of(place) == ("", "") for place in places)


def test_a_split_has_several_names() -> None:
    assert [wanted_kind(name) for name in ("validation", "valid", "val", "Testing", "train2017", "other", "All")] == [
        *("val", "val", "val", "test", "train", "other", "all")
    ]
