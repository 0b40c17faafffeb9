"""Labels, class names, keys and pictures of other programs' tars: whatever is chosen among several is chosen by a rule, and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.evaluation.probe.pictures import DatasetPictures
from shards.__main__ import main
from shards.adopt.class_names import find_class_names
from shards.adopt.index_tars import as_text
from shards.build.sources import open_source
from shards.check.inspect import inspect, samples_of
from shards.check.verify import verify
from shards.dataset import manifest
from shards.dataset.index import NO_LABEL, PICTURE_EXTENSIONS, Rules
from shards.dataset.manifest import Manifest
from shards.errors import ShardError, SourceError, StoreError
from tests.shards.adopt.foreign import ours, picture, run
from tests.shards.trees import tar_of, write_folder
from tests.shards.web_servers import Manners, serving

SAMPLES = {"0.jpg": picture(0), "0.cls": b"1", "1.jpg": picture(1), "1.cls": b"0", "2.jpg": picture(2), "2.cls": b"-1", "3.jpg": picture(3)}


def wrote(folder: Path, members: dict[str, bytes], name: str = "0.tar") -> Path:
    return write_folder(folder, {name: tar_of(members)})


@pytest.mark.parametrize("text", [b"-1", b"-1\n", b" -1 "])
def test_minus_one_is_a_sample_without_a_label(tmp_path: Path, text: bytes) -> None:
    result = run(wrote(tmp_path, {**SAMPLES, "2.cls": text}))
    assert [label for _, _, label in ours(tmp_path)] == [1, 0, NO_LABEL, NO_LABEL]
    assert (result.manifest.rejected, result.manifest.settings["labelled"], result.manifest.labelled) == (0, 2, True)
    assert verify(str(tmp_path), quiet=True).problems == ()


def test_labels_that_are_ids_are_counted_without_a_row_for_every_number_between(tmp_path: Path) -> None:
    run(wrote(tmp_path, {**SAMPLES, "0.cls": b"2147483647", "3.cls": b"2147483647"}))
    summary, samples = inspect(str(tmp_path))
    assert (summary.classes, summary.class_counts, summary.unlabelled) == (("0", "2147483647"), (1, 2), 1)
    assert [sample.label for sample in samples] == ["2147483647", "0", None, "2147483647"]
    pictures = DatasetPictures(str(tmp_path))
    assert (pictures.classes, pictures.labels.tolist()) == (("0", "2147483647"), [1, 0, -1, 1])


@pytest.mark.parametrize("text", [b"", b"3.0", b"1_0", b"cat"])
def test_what_is_no_class_number_is_listed(tmp_path: Path, text: bytes) -> None:
    ((key, _, reason),) = run(wrote(tmp_path, {**SAMPLES, "1.cls": text})).rejected
    assert (key, reason) == ("1", f"has the label {text!r}, which is not a class number")


@pytest.mark.parametrize(("members", "rules"), [({"0.jpg": picture(0), "0.cls": b"-1"}, Rules()), (SAMPLES, Rules(labels=False))])
def test_a_set_without_any_label_says_so(tmp_path: Path, members: dict[str, bytes], rules: Rules) -> None:
    assert not run(wrote(tmp_path, members), rules=rules).manifest.labelled


def test_a_manifest_that_did_not_count_its_labels_is_taken_to_have_some() -> None:
    assert Manifest((), settings={"indexed": [], "labels": "cls"}).labelled
    assert not Manifest((), settings={"indexed": [], "labels": "none"}).labelled
    assert not Manifest((), settings={"labels": "folder"}).labelled
    assert Manifest((), classes=("cat", "dog")).labelled


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classnames.txt", "cat\nbig dog\n"),
        ("classes.txt", "\ufeff0 cat\r\n1: 'big dog',\r\n"),
        ("labels.txt", "1 big dog\n0 cat"),
        ("labels.txt", "big dog,1\ncat,0"),
        ("classes.txt", "# classes\n# of 2026\ncat\nbig dog\n#3\n"),
        ("classes.txt", "cat\nbig dog\nBoeing 737"),
        ("class_names.json", '["cat", "big dog", "none of them"]'),
        ("classnames.json", '{"0": ["n01", "cat"], "1": ["n02", "big dog"]}'),
        ("labels.json", '{"big dog": 1, "cat": 0}'),
        ("labels.json", '["cat", "big dog", ["n02012849", "crane"], ["n03126707", "crane"]]'),
    ],
)
def test_a_file_beside_the_tars_names_the_classes(tmp_path: Path, name: str, content: str) -> None:
    write_folder(wrote(tmp_path, SAMPLES), {name: content.encode()})
    result = run(tmp_path)
    assert result.manifest.classes[:2] == ("cat", "big dog")
    assert any(f"class names: {len(result.manifest.classes)} from {tmp_path / name}" in line for line in as_text(result))
    assert [sample.label for sample in samples_of(manifest.load(str(tmp_path)), 0, 4)] == ["big dog", "cat", None, None]
    assert run(tmp_path).read == 0
    assert verify(str(tmp_path), quiet=True).problems == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("cat\n", "names 1 class, and the labels go up to 1"),
        ("1\n0\n1\n", "holds lines that are no names"),
        ("cat\n\ndog\n", "holds lines that are no names"),
        ("0.jpg\n1.jpg\n", "names pictures, not classes"),
        ("1 cat\n2 dog\n", "does not number its names from 0"),
        ("cat 1\ndog 2\n", "does not number its names from 0"),
        ("0 cat\n0 dog\n1 bird\n", "has the number 0 twice"),
        ("cat 0\nkitty 0\ndog 1\n", "has the number 0 twice"),
        ("cat\ncat\ndog\n", "has the name 'cat' twice"),
        ("<!DOCTYPE html>\n<html>\n</html>\n", "is a page, not a file of names"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is neither a list of names nor a table"),
        ("\udcff\udcfe", "is neither a list of names nor a table"),
    ],
)
def test_a_file_that_holds_no_names_is_not_used_and_said(tmp_path: Path, content: str, why: str) -> None:
    write_folder(wrote(tmp_path, SAMPLES), {"labels.txt": content.encode("utf-8", "surrogateescape")})
    result = run(tmp_path)
    assert result.manifest.classes == ()
    assert any(f"class names: none, because {tmp_path}/labels.txt {why}" in line for line in as_text(result))


@pytest.mark.parametrize(("content", "why"), [('{"cat": 0, "kitty": 0, "dog": 1}', "number 0"), ('{"0": "cat", "0": "dog"}', "name '0'")])
def test_a_table_that_says_two_things_of_a_class_is_not_used(tmp_path: Path, content: str, why: str) -> None:
    write_folder(wrote(tmp_path, SAMPLES), {"labels.json": content.encode()})
    assert any(f"class names: none, because {tmp_path}/labels.json has the {why} twice" in line for line in as_text(run(tmp_path)))


def test_a_page_for_a_name_that_is_not_there_hides_no_later_file(tmp_path: Path) -> None:
    write_folder(wrote(tmp_path, SAMPLES), {"classnames.txt": b"<html></html>", "classes.txt": b"cat\ndog\n"})
    assert run(tmp_path).manifest.classes == ("cat", "dog")


def test_a_server_that_is_out_of_order_is_an_error_and_one_that_refuses_or_sends_pages_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path, {"classes.txt": b"cat\ndog\n"})
    with serving(tmp_path, Manners(moved=True)) as url, pytest.raises(StoreError, match=r"classnames\.txt"):
        find_class_names(url, {}, 1)
    with serving(tmp_path, Manners(signed=True)) as url:
        assert find_class_names(url, {}, 1) == ((), "")
    with serving(tmp_path, Manners(page=True)) as url:
        assert find_class_names(url, {}, 1) == (("cat", "dog"), f"class names: 2 from {url}/classes.txt")
        assert find_class_names(f"{url}/none", {}, 1) == (
            (),
            f"class names: none, because {url}/none/classnames.txt is a page, not a file of names",
        )


def test_the_names_of_a_split_may_lie_one_folder_up(tmp_path: Path) -> None:
    for folder in ("test", "other"):
        wrote(tmp_path / folder, SAMPLES)
    write_folder(tmp_path, {"classnames.txt": b"cat\ndog\n"})
    assert run(tmp_path / "test").manifest.classes == ("cat", "dog")
    assert run(tmp_path / "other").manifest.classes == ()


DOTTED = {
    "photo.{}.{}.jpg": ["photo.0.0", "photo.1.7", "photo.2.14"],
    "{:02d}.05.jpg": ["00.05", "01.05", "02.05"],
    "IMG_2020-0{}.v2.jpg": ["IMG_2020-00.v2", "IMG_2020-01.v2", "IMG_2020-02.v2"],
}


@pytest.mark.parametrize("names", DOTTED)
def test_names_with_dots_lead_to_advice_that_helps(tmp_path: Path, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    stems = [names.format(number, 7 * number).removesuffix(".jpg") for number in range(3)]
    members = {f"{stem}.{end}": b"3" if end == "cls" else stem.encode() for stem in stems for end in ("cls", "jpg")}
    wrote(tmp_path, members)
    for more in ([], ["--picture", "jpg"]):
        assert main(["index", str(tmp_path), *more]) == 1
        assert "--key-ends last-dot" in capsys.readouterr().err
    assert main(["index", str(tmp_path), "--key-ends", "last-dot"]) == 0
    assert [(key, label) for key, _, label in ours(tmp_path)] == [(key, 3) for key in DOTTED[names]]
    assert verify(str(tmp_path), quiet=True).problems == ()


def test_the_advice_also_stands_where_some_samples_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrote(tmp_path, {"0.jpg": picture(0), "1.left.jpg": picture(1)})
    assert main(["index", str(tmp_path)]) == 0
    assert "--picture left.jpg" in capsys.readouterr().out
    assert main(["index", str(tmp_path), "--picture", ".LEFT.jpg; jpg"]) == 0
    assert [key for key, _, _ in ours(tmp_path)] == ["0", "1"]


@pytest.mark.parametrize("picture_option", ["jpg;jpeg;webp", "jpg,jpeg,webp", "*.jpg .jpeg .WEBP"])
def test_several_extensions_can_be_told(tmp_path: Path, picture_option: str) -> None:
    kinds = ("jpg", "jpeg", "webp")
    members = {f"{n}.{end}": picture(n + 9 * (end == "png")) for n, kind in enumerate(kinds) for end in ("png", kind)}
    wrote(tmp_path, {**members, "3.webp": picture(3), "3.jpg": picture(4)})
    assert main(["index", str(tmp_path), "--picture", picture_option]) == 0
    assert [data for _, data, _ in ours(tmp_path)] == [picture(0), picture(1), picture(2), picture(4)]
    assert manifest.load(str(tmp_path)).settings["picture"] == "jpg;jpeg;webp"
    assert verify(str(tmp_path), quiet=True).problems == ()


def test_no_extension_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(wrote(tmp_path, SAMPLES)), "--picture", " ; "]) == 1
    assert "names no extension" in capsys.readouterr().err


@pytest.mark.parametrize("photograph", ["jpg", "jpeg", "jpe", "jfif", "webp"])
def test_of_several_pictures_the_documented_one_is_taken_and_said(tmp_path: Path, photograph: str) -> None:
    wrote(tmp_path, {"0.png": picture(1), f"0.{photograph}": picture(0), "1.bmp": picture(2)})
    result = run(tmp_path)
    assert [data for _, data, _ in ours(tmp_path)] == [picture(0), picture(2)]
    assert any(line.startswith("  samples with several pictures") and line.endswith(": 1") for line in as_text(result))
    assert verify(str(tmp_path), quiet=True).problems == ()
    documented = Path(__file__).parents[3].joinpath("docs", "shards.md").read_text()
    assert ", ".join(f"`{extension}`" for extension in PICTURE_EXTENSIONS) in " ".join(documented.split())


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "a/@eaDir", "__MACOSX", "a/.Trash-1000"])
def test_files_in_a_tar_are_left_out_where_a_build_leaves_them_out(tmp_path: Path, folder: str) -> None:
    members = {"a/0.jpg": picture(0), f"{folder}/1.jpg": picture(1), f"{folder}/1.cls": b"cat", "a/0.cls": b"1", "a/2.jpg": picture(2)}
    wrote(tmp_path, members)
    result = run(tmp_path, strict=True)
    assert ours(tmp_path) == [("a/0", picture(0), 1), ("a/2", picture(2), NO_LABEL)]
    name = folder.rpartition("/")[2]
    assert any(f"hidden or of a tool, left out of the tars: 2 files ({name}" in line for line in as_text(result))
    assert verify(str(tmp_path), quiet=True).problems == ()
    wrote(tmp_path, {f"{folder}/3.jpg": picture(3), "b/4.jpg": picture(4), "b/4.png": picture(5)}, "1.tar")
    lines = as_text(run(tmp_path))
    assert any(f"left out of the tars that were read now: 1 file ({name})" in line for line in lines)
    assert any("several pictures in the tars that were read now" in line for line in lines)
    wrote(tmp_path / "none", {f"{folder}/3.jpg": picture(3)})
    with pytest.raises(ShardError, match=r"holds no samples \(hidden or of a tool, left out of the tars: 1 file"):
        run(tmp_path / "none")


@pytest.mark.parametrize(
    ("members", "advised"),
    [
        ({"1.jpg": b""}, ""),
        ({"1.avif": b"1", "1.cls": b"1"}, "convert others"),
        ({"1.txt": b"1"}, "convert others"),
        ({"1.png": b"1"}, "--picture 'jpg;jpeg;png'"),
    ],
)
def test_the_advice_fits_the_reason(tmp_path: Path, members: dict[str, bytes], advised: str) -> None:
    lines = as_text(run(wrote(tmp_path, {"0.jpg": picture(0), **members}), rules=Rules(picture="jpg")))
    assert lines[-2 if advised else -1].startswith("    0.tar: sample 1 has ")
    assert advised in lines[-1]


def test_pictures_of_a_format_that_is_not_read_can_not_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrote(tmp_path, {"0.jp2": b"1", "1.img": picture(1)})
    assert main(["index", str(tmp_path), "--picture", "jpg;left.jp2"]) == 1
    assert "left.jp2 is not read. Convert these pictures" in capsys.readouterr().err
    assert main(["index", str(tmp_path), "--picture", "img"]) == 0


@pytest.mark.parametrize("extension", ["avif", "jp2", "heic"])
def test_formats_that_are_not_read_are_left_out_and_counted(tmp_path: Path, extension: str) -> None:
    write_folder(tmp_path / "in", {"a.jpg": b"1", f"b.{extension}": b"2"})
    assert open_source(str(tmp_path / "in")).other == {f".{extension}": 1}
    wrote(tmp_path / "tars", {"9.cls": b"1", f"9.{extension}": picture(0), "8.jpg": picture(8)})
    assert [reason for _, _, reason in run(tmp_path / "tars").rejected] == [
        f"has 0 pictures where one is needed: {sorted(['cls', extension])}"
    ]


def test_data_sets_of_the_rules_before_are_sound_and_are_read_anew_when_indexed_again(tmp_path: Path) -> None:
    old = Rules(format=1)
    wrote(tmp_path, {**SAMPLES, "4.jpg": picture(4), "4.png": picture(5), "5.jfif": picture(6), "5.cls": b"1", "@eaDir/6.jpg": picture(7)})
    wrote(tmp_path, {"7.jpg": picture(8), "7.cls": b"1_0"}, "1.tar")
    result = run(tmp_path, rules=old)
    assert [key for key, _, _ in ours(tmp_path)] == ["0", "1", "3", "@eaDir/6", "7"]
    assert (result.manifest.rejected, result.manifest.settings["index_format"]) == (3, 1)
    settings = {key: value for key, value in result.manifest.settings.items() if key not in {"labelled", "key_ends"}}
    table = json.loads((tmp_path / "manifest.json").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({**table, "settings": settings}))
    assert verify(str(tmp_path), quiet=True).problems == ()
    assert manifest.load(str(tmp_path)).labelled
    again = run(tmp_path)
    assert again.read == 2
    assert any("1 sample more by newer rules than those of the manifest before: other ids" in line for line in as_text(again))
    assert [key for key, _, _ in ours(tmp_path)] == ["0", "1", "2", "3", "4", "5"]


SPLIT_TARS = ["train/0.tar test/0.tar", "set-train-000000.tar set-train-000001.tar set-val-000000.tar", "a/Training.tar a/Validation.tar"]


@pytest.mark.parametrize("names", SPLIT_TARS)
def test_tars_of_several_splits_are_not_one_set_unasked(tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names.split()):
        wrote(tmp_path, {f"{number}.jpg": picture(number)}, name)
    with pytest.raises(SourceError, match=r"holds several splits \(tars: .*train \d.*--split train, or all together with --split all"):
        run(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    chosen = run(tmp_path, tmp_path / "one", split="training")
    assert {record.name for record in chosen.manifest.records} == {name for name in names.split() if "train" in name.lower()}
    assert any(line.startswith("  tars of other splits, left out: ") for line in as_text(chosen))
    assert main(["index", str(tmp_path), "--to", str(tmp_path / "all"), "--split", "ALL"]) == 0
    every = manifest.load(str(tmp_path / "all"))
    assert (len(every.records), every.settings["split"]) == (len(names.split()), "all")
    with pytest.raises(SourceError, match="has no split holdout"):
        run(tmp_path, tmp_path / "none", split="holdout")


@pytest.mark.parametrize("together", [True, False])
def test_keys_of_several_splits_are_not_one_set_unasked(tmp_path: Path, together: bool) -> None:
    keys = {f"data/{split}/cat/{number}.jpg": picture(number) for number, split in enumerate(("train", "val"))}
    parts = [keys] if together else [{key: data} for key, data in keys.items()]
    for number, members in enumerate(parts):
        wrote(tmp_path, members, f"{number}.tar")
    for _ in range(2):  # also where the tars were read by the run before
        with pytest.raises(SourceError, match=r"0\.tar: the keys .* several splits \(train, val\).*--split all"):
            run(tmp_path)
        assert not (tmp_path / "manifest.json").exists()
    assert (run(tmp_path, split="all").read, len(ours(tmp_path))) == (0, 2)
    for _ in range(2):
        assert run(tmp_path).manifest.total_samples == 2


@pytest.mark.parametrize("digests", [True, False])
def test_a_growing_set_is_not_mixed_unasked(tmp_path: Path, digests: bool) -> None:
    rules = Rules(digests=digests)
    wrote(tmp_path, {"train/0.jpg": picture(0)}, "0.tar")
    for _ in range(2):
        run(tmp_path, rules=rules)
    wrote(tmp_path, {"train/1.jpg": picture(1)}, "1.tar")
    assert run(tmp_path, rules=rules).manifest.total_samples == 2
    wrote(tmp_path, {"val/2.jpg": picture(2)}, "2.tar")
    for _ in range(2):
        with pytest.raises(SourceError, match=r"0\.tar: the keys .* several splits \(train, val\).*--split all"):
            run(tmp_path, rules=rules)
    assert manifest.load(str(tmp_path)).total_samples == 2
    assert run(tmp_path, rules=rules, split="all").manifest.total_samples == 3


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("train", "all"), ("all", "train"), (None, "val")])
def test_the_manifest_of_another_split_is_not_replaced(tmp_path: Path, first: str | None, second: str) -> None:
    for name in ("train/0.tar", "val/0.tar"):
        wrote(tmp_path, {"0.jpg": picture(0)}, name)
    run(f"{tmp_path}/{{train,val}}/*.tar" if first is None else tmp_path, split=first)
    there = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ShardError, match=f"--split {second} would replace. Name another folder with --to"):
        run(tmp_path, split=second)
    assert (tmp_path / "manifest.json").read_bytes() == there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train", "val"]
    if first is not None:
        run(tmp_path, split={"train": "training"}.get(first, first))


def test_splits_that_the_urls_name_were_asked_for(tmp_path: Path) -> None:
    for name in ("train/0.tar", "val/0.tar"):
        wrote(tmp_path, {"0.jpg": picture(0)}, name)
    for number, urls in enumerate(([f"{tmp_path}/{{train,val}}/*.tar"], [f"{tmp_path}/train", f"{tmp_path}/val"])):
        assert len(run(urls, tmp_path / f"out{number}").manifest.records) == 2
    with pytest.raises(SourceError, match="holds several splits"):
        run(f"{tmp_path}/*/*.tar", tmp_path / "glob")


def test_tars_in_hidden_and_tool_folders_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = (".ipynb_checkpoints/0.tar", "@eaDir/0.tar", "a/.Trash-1000/0.tar", "__MACOSX/._0.tar", "._0.tar")
    for number, name in enumerate(("0.tar", *hidden)):
        wrote(tmp_path, {f"{number}.jpg": picture(number)}, name)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "round").symlink_to(tmp_path / "lost+found")
    assert main(["index", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "hidden or of a tool, left out: 5 (.Trash-1000, ._0.tar, .ipynb_checkpoints, @eaDir, __MACOSX)" in said
    assert [record.name for record in manifest.load(str(tmp_path)).records] == ["0.tar"]
    named = run(f"{tmp_path}/.ipynb_checkpoints/*.tar", tmp_path / "named").manifest
    assert [record.name for record in named.records] == ["0.tar"]
    with pytest.raises(ShardError, match=r"no \.tar is there \(hidden or of a tool, left out: 1 \(\.Trash-1000\)\)"):
        run(tmp_path / "a")
