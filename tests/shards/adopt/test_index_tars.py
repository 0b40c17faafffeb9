"""Tars of another program become a data set: we read what webdataset reads, nothing is lost silently, and no tar is changed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.check.verify import verify
from shards.dataset import manifest
from shards.dataset.index import NO_DIGEST, NO_LABEL, Rules
from shards.errors import ShardError, SourceError
from shards.store import Store
from shards.tar.reader import PIECE
from tests.shards.adopt.foreign import counted, ours, picture, plain_tar, run, theirs, write_shards
from tests.shards.trees import classed, tar_of, write_folder
from tests.shards.trees import run as build


def test_every_sample_is_the_one_that_webdataset_reads(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "tars", 3)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    result = run(tmp_path / "tars")
    assert (result.read, result.manifest.rejected, result.manifest.total_samples) == (3, 0, 15)
    assert ours(tmp_path / "tars") == theirs(paths)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths} == before
    assert verify(str(tmp_path / "tars"), quiet=True).problems == ()
    assert sorted(path.name for path in (tmp_path / "tars").iterdir() if path.suffix != ".tar") == [
        *("manifest.json", "shard-000000.tar.idx", "shard-000001.tar.idx", "shard-000002.tar.idx")
    ]


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_long_names_folders_and_capitals_in_tars_of_the_tar_program(tmp_path: Path, form: str) -> None:
    deep = "/".join(["a folder of some length", *["b" * 30] * 4])
    members = {}
    for number, extension in enumerate(["jpg", "JPG", "Jpeg", "png", "WEBP"]):
        members[f"{deep}/v1.5/{number:03d}.{extension}"] = picture(number)
        members[f"{deep}/v1.5/{number:03d}.CLS" if number == 1 else f"{deep}/v1.5/{number:03d}.cls"] = b"%d\n" % number
    members["снег/0.jpg"] = picture(9)
    path = plain_tar(tmp_path / "x.tar", members, f"--format={form}")
    run(path, tmp_path / "out")
    assert ours(tmp_path / "out") == theirs([path])
    keys, _, labels = zip(*ours(tmp_path / "out"), strict=True)
    assert keys == (*(f"{deep}/v1.5/{number:03d}" for number in range(5)), "снег/0")
    assert labels == (0, 1, 2, 3, 4, NO_LABEL)
    assert verify(str(tmp_path / "out"), quiet=True).problems == ()


def test_samples_that_can_not_be_used_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    members = {
        "good/0.jpg": picture(0),
        "none.json": b"{}",
        "raw.heic": picture(1),
        "raw.txt": b"a format that is not known",
        "word.jpg": picture(3),
        "word.cls": b"cat",
        "minus.jpg": picture(4),
        "minus.cls": b"-3",
        "empty.jpg": b"",
        "mask.jpg": picture(5),
        "mask.seg.png": picture(6),
    }
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    (tmp_path / "y.tar").write_bytes(tar_of({"z.jpg": picture(7)}))
    result = run(tmp_path)
    assert [key for key, _, _ in ours(tmp_path)] == ["good/0", "mask", "z"]
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["none", "raw", "word", "minus", "empty"]
    assert {row["tar"] for row in rows} == {"x.tar"}
    for row, why in zip(rows, ["0 pictures", "0 pictures", "b'cat'", "class -3", "0 bytes"], strict=True):
        assert why in row["reason"]
    assert result.manifest.rejected == len(result.rejected) == 5
    assert verify(str(tmp_path), quiet=True).problems == ()
    with pytest.raises(ShardError, match=r"(?s)5 samples can't be used, which --strict.*no manifest.*x\.tar: sample none has 0 pictures"):
        run(tmp_path, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "manifest.json").exists()

    (tmp_path / "x.tar").write_bytes(tar_of({"0.jpg": picture(0)}))
    assert run(tmp_path).manifest.rejected == 0
    assert not (tmp_path / "rejected.jsonl").exists()


def test_a_choice_of_picture_and_of_labels(tmp_path: Path) -> None:
    both = {"0.jpg": picture(0), "0.png": picture(1), "0.cls": b"cat", "1.jpg": picture(2), "1.seg.png": picture(3)}
    (tmp_path / "x.tar").write_bytes(tar_of(both))
    with pytest.raises(ShardError, match=r"--labels none"):
        run(tmp_path, tmp_path / "all", rules=Rules("png"))
    for extension, expected in {"png": [("0", picture(1), -1)], "jpg": [("0", picture(0), -1), ("1", picture(2), -1)]}.items():
        run(tmp_path, tmp_path / extension, rules=Rules(extension, labels=False))
        assert ours(tmp_path / extension) == expected
        assert verify(str(tmp_path / extension), quiet=True).problems == ()
    prints = {manifest.load(str(tmp_path / extension)).fingerprint for extension in ("png", "jpg")}
    assert len(prints) == 2


def damaged(good: bytes) -> dict[str, bytes]:
    return {
        "a-cut.tar": good[:2600],
        "b-header.tar": good[: -len(good) // 3] + b"\xff" * (len(good) // 3),
        "c-empty.tar": b"",
        "d-text.tar": b"no tar at all" * 1000,
        "e-twice.tar": tar_of({"0.jpg": b"1", "1.jpg": b"2", "0.cls": b"3"}),
        "f-joined.tar": good + good,
        "g-zipped.tar": b"\x1f\x8b" + good,
    }


@pytest.mark.parametrize("digests", [True, False])
def test_every_damaged_tar_is_named_and_the_sound_ones_are_not_read_again(tmp_path: Path, digests: bool) -> None:
    good = tar_of({f"{number}.jpg": picture(number) for number in range(9)})
    bad = damaged(good)
    for name, data in {**bad, "sound.tar": good}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ShardError, match=r"1 of 8 tars are indexed, and no new manifest was written") as caught:
        run(tmp_path, rules=Rules(digests=digests))
    named = [line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:-1]]
    assert named == [str(tmp_path / name) for name in bad]
    assert not (tmp_path / "manifest.json").exists()
    for name in bad:
        (tmp_path / name).write_bytes(good)
    with counted() as read:
        run(tmp_path, rules=Rules(digests=digests))
    assert {name for name, _ in read} == set(bad)
    assert len(ours(tmp_path)) == 9 * 8


def test_every_cut_is_an_error_and_an_open_end_only_where_it_was_asked_for(tmp_path: Path) -> None:
    good = tar_of({"0.jpg": picture(0), "1.jpg": picture(1)})
    end = -(-len(good.rstrip(b"\0")) // 512) * 512
    for cut in (511, 512, 1000, end - 700, end - 1, end, end + 100, end + 511):
        (tmp_path / "x.tar").write_bytes(good[:cut])
        with pytest.raises(ShardError, match=r"x\.tar: "):
            run(tmp_path)
        if cut != end:
            with pytest.raises(ShardError, match=r"x\.tar: "):
                run(tmp_path, rules=Rules(open_ended=True))
    (tmp_path / "x.tar").write_bytes(good[:end])
    run(tmp_path, rules=Rules(open_ended=True))
    assert ours(tmp_path) == theirs([tmp_path / "x.tar"])
    assert verify(str(tmp_path), quiet=True).problems == ()


def test_tars_without_samples_take_no_ids(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 2)
    (tmp_path / "shard-000000-empty.tar").write_bytes(tar_of({}))
    (tmp_path / "shard-000002.tar").write_bytes(tar_of({"README": b"no sample"}))
    data = run(tmp_path).manifest
    assert data.sample_counts.tolist() == [0, 5, 5, 0]
    assert data.locate(np.arange(10))[0].tolist() == [1] * 5 + [2] * 5
    assert ours(tmp_path) == theirs(paths)
    assert verify(str(tmp_path), quiet=True).problems == ()
    for path in paths:
        path.unlink()
    with pytest.raises(ShardError, match="the 2 tars hold no samples"):
        run(tmp_path)


def test_compressed_tars_are_refused_with_advice_or_said_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    for url in (tmp_path, tmp_path / "x.tar.gz", tmp_path / "*.gz", tmp_path / "x.tar.{gz,zst}"):
        (tmp_path / "x.tar.zst").write_bytes(b"")
        with pytest.raises(SourceError, match=r"compressed tars? and no plain one.*gunzip"):
            run(url)
    write_shards(tmp_path, 1)
    assert run(tmp_path).compressed == 2


def test_a_growing_set_costs_what_is_new_and_moves_no_sample(tmp_path: Path) -> None:
    write_shards(tmp_path, 3)
    (tmp_path / "shard-000001.tar").write_bytes(tar_of({"bad.json": b"", "ok.jpg": picture(1)}))
    old = run(tmp_path).manifest
    with counted() as read:
        again = run(tmp_path)
    assert (read, again.read, again.manifest.encode()) == ([], 0, old.encode())

    write_shards(tmp_path, 2, first=3)
    with counted() as read:
        grown = run(tmp_path).manifest
    assert {name for name, _ in read} == {"shard-000003.tar", "shard-000004.tar"}
    assert list(grown.records[:3]) == list(old.records)
    assert grown.rejected == 1
    assert grown.fingerprint != old.fingerprint
    assert len(ours(tmp_path)) == grown.total_samples == 21

    write_shards(tmp_path, 1, first=2, each=4)
    (tmp_path / "shard-000004.tar").unlink()
    with counted() as read:
        result = run(tmp_path)
    assert ({name for name, _ in read}, result.gone) == ({"shard-000002.tar"}, 1)
    assert verify(str(tmp_path), quiet=True).problems == ()

    (tmp_path / "rejected.jsonl").unlink()  # lost: the samples it listed have to be found again
    assert run(tmp_path).manifest.rejected == 1
    assert run(tmp_path, rules=Rules("jpg")).read == 4
    (tmp_path / "shard-000003.tar.idx").unlink()
    assert run(tmp_path, rules=Rules("jpg")).read == 1


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    build(write_folder(tmp_path / "in", classed(8)), tmp_path / "built")
    with pytest.raises(ShardError, match="was built, with its indexes: there is nothing to index"):
        run(tmp_path / "built")
    write_shards(tmp_path / "a", 1)
    write_shards(tmp_path / "b", 1)
    run(tmp_path / "a", tmp_path / "out")
    with pytest.raises(ShardError, match=r"holds the indexes of .*/a, not of .*/b\. Choose another folder with --to"):
        run(tmp_path / "b", tmp_path / "out")
    run(tmp_path / "a")
    with pytest.raises(ShardError, match="indexed, not built: they are not removed"):
        build(tmp_path / "in", tmp_path / "a", overwrite=True)
    assert len(ours(tmp_path / "a")) == 5
    write_folder(tmp_path / "b", {"_build/plan.json": b"{}"})
    with pytest.raises(ShardError, match="holds an unfinished build"):
        run(tmp_path / "b")


def test_without_digests_large_pictures_are_passed_over_and_small_ones_are_not_asked_for_one_by_one(tmp_path: Path) -> None:
    write_shards(tmp_path / "large", 1, each=6, size=1 << 20)
    with counted() as read:
        run(tmp_path / "large", tmp_path / "none", rules=Rules(digests=False))
    assert sum(size for _, size in read) < 0.05 * (tmp_path / "large/shard-000000.tar").stat().st_size
    assert len(read) <= 2 * 6 + 2
    run(tmp_path / "large", tmp_path / "read")
    bare, full = manifest.load(str(tmp_path / "none")), manifest.load(str(tmp_path / "read"))
    rows, known = (data.read_index(Store(data.url), 0).rows for data in (bare, full))
    assert np.array_equal(rows[["offset", "length", "label"]], known[["offset", "length", "label"]])
    assert (rows["digest"] == NO_DIGEST).all()
    assert bare.records[0].sha256 == ""
    assert bare.settings["digests"] == "none"
    assert ours(tmp_path / "none") == ours(tmp_path / "read")

    write_shards(tmp_path / "small", 1, each=1000, size=900)
    with counted() as read:
        run(tmp_path / "small", rules=Rules(digests=False))
    assert len(read) < 20
    assert run(tmp_path / "small").read == 1  # asking for digests afterwards reads what has none
    assert run(tmp_path / "small", rules=Rules(digests=False)).read == 0  # more than was asked for is there


def test_no_tar_is_held_in_memory(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, each=2, size=3 * PIECE)
    with counted() as read:
        run(tmp_path)
    assert max(size for _, size in read) == PIECE
    assert sum(size for _, size in read) == (tmp_path / "shard-000000.tar").stat().st_size
    assert ours(tmp_path) == theirs([tmp_path / "shard-000000.tar"])


def test_a_header_that_claims_gigabytes_is_an_error_and_no_allocation(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(4 << 30)  # takes no room on the disk
    with pytest.raises(ShardError, match=r"x\.tar: a header of 3,221,225,\d+ bytes"):
        run(tmp_path, rules=Rules(digests=False))


def test_a_tar_that_is_replaced_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shards(tmp_path, 1)[0]
    other = io.BytesIO(path.read_bytes()).getvalue()
    plain = Store.read_range

    def replaced(store: Store, name: str, start: int, end: int) -> bytes:
        data = plain(store, name, start, end)
        path.unlink()
        path.write_bytes(other)
        return data

    monkeypatch.setattr(Store, "read_range", replaced)
    with pytest.raises(ShardError, match="replaced or removed while it was read"):
        run(tmp_path)


def test_verify_notices_a_replaced_tar_whose_bytes_were_never_read(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "tars", 2)
    run(tmp_path / "tars", tmp_path / "out", rules=Rules(digests=False))
    report = verify(str(tmp_path / "out"), quiet=True)
    assert (report.problems, report.unproven) == ((), 2)
    data = bytearray(paths[1].read_bytes())
    data[600] ^= 1
    paths[1].write_bytes(data)
    problems = verify(str(tmp_path / "out"), quiet=True).problems
    assert [(problem.name, "its version differs" in problem.what) for problem in problems] == [("shard-000001.tar", True)]
    (tmp_path / "out" / "shard-000000.tar.idx").unlink()
    assert verify(str(tmp_path / "out"), repair_index=True, quiet=True).repaired == ("shard-000000.tar.idx",)
    assert run(tmp_path / "tars", tmp_path / "out", rules=Rules(digests=False)).read == 1
