"""Verification finds whatever is wrong, names it, and says nothing when nothing is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.local.object_store import SeaweedFS
from pipeline.config import DataConfig
from pipeline.stream.loader import StreamConfig, StreamLoader
from shards.__main__ import main
from shards.build.build import BuildFailed
from shards.check.verify import verify
from shards.dataset import index
from shards.dataset.pixels import PictureRejected, read_rgb
from shards.errors import ManifestMismatch, ShardError
from shards.store import Store
from tests.datasets import photographs, write_dataset
from tests.shards.trees import classed, contents, encoded, run, shards_only, write_folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    run(write_folder(folder / "in", {**classed(), "class0/bad.jpg": b"x"}), folder / "out")
    return folder / "out"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def problems(url: Path | str, **more: object) -> dict[str, str]:
    return {problem.name: problem.what for problem in verify(str(url), quiet=True, **more).problems}  # type: ignore[arg-type]


def patch(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_sound_data_set_has_no_problems(built: Path) -> None:
    assert problems(built) == {}
    assert problems(f"{built}/manifest.json", workers=3) == {}


def test_one_flipped_bit_in_a_picture_is_found_down_to_the_sample(copy: Path) -> None:
    rows = index.decode((copy / "shard-000001.tar.idx").read_bytes(), "x").rows
    patch(copy / "shard-000001.tar", flip(int(rows["offset"][6]) + 200))
    found = verify(str(copy), quiet=True).problems
    assert {problem.name for problem in found} == {"shard-000001.tar"}
    assert any("sha256" in problem.what for problem in found)
    assert any("1 sample is not what the index says (in the order of the shard: 6)" in problem.what for problem in found)


def test_one_flipped_bit_is_found_wherever_it_is(copy: Path) -> None:
    """In a tar header, in padding, in a label, at the end."""
    shard = copy / "shard-000000.tar"
    size = shard.stat().st_size
    for place in (0, 100, 512, 700, 1030, size // 2, size - 1):
        patch(shard, flip(place))
        assert "shard-000000.tar" in problems(copy), place
        patch(shard, flip(place))
    assert problems(copy) == {}


@pytest.mark.parametrize("left", [0, 100, 512, 20_000, -10_240, -1])
def test_a_shard_that_is_cut_short_is_found(copy: Path, left: int) -> None:
    patch(copy / "shard-000002.tar", lambda data: data[:left])
    found = problems(copy)
    assert list(found) == ["shard-000002.tar"]
    assert any("bytes, the manifest says" in problem.what for problem in verify(str(copy), quiet=True).problems)


def test_everything_that_is_wrong_is_listed_at_once(copy: Path) -> None:
    (copy / "shard-000000.tar").unlink()
    (copy / "shard-000001.tar.idx").unlink()
    patch(copy / "shard-000002.tar.idx", flip(50))
    patch(copy / "shard-000003.tar", lambda data: data + b"\0")
    write_folder(copy, {"extra.tar": b"1", "deep/extra": b"2", "_build/000000.json": b"3"})
    patch(copy / "rejected.jsonl", lambda data: data * 2)
    found = problems(copy)
    assert found == {
        "shard-000000.tar": "missing",
        "shard-000001.tar.idx": "missing (the shard is sound: --repair-index makes it again)",
        "shard-000002.tar.idx": found["shard-000002.tar.idx"],
        "shard-000003.tar": found["shard-000003.tar"],
        "extra.tar": "not in the manifest",
        "deep/extra": "not in the manifest",
        "_build/000000.json": "left by an interrupted build: run that build again to finish it",
        "rejected.jsonl": "lists 2 pictures, the manifest says 1",
    }
    assert "not the index that the manifest names" in found["shard-000002.tar.idx"]


def test_an_index_that_fits_another_tar_is_found_even_when_the_manifest_agrees(copy: Path) -> None:
    """A wrong index whose digest was written to the manifest: only reading the shard shows it."""
    import hashlib

    name = "shard-000001.tar.idx"
    good = index.decode((copy / name).read_bytes(), name)
    rows = good.rows.copy()
    rows["label"][[2, 5]] = rows["label"][[2, 5]] ^ 1
    wrong = index.ShardIndex(rows, good.shard_bytes).encode()
    (copy / name).write_bytes(wrong)
    patch(
        copy / "manifest.json",
        lambda data: data.replace(hashlib.sha256(good.encode()).hexdigest().encode(), hashlib.sha256(wrong).hexdigest().encode()),
    )
    assert problems(copy) == {"shard-000001.tar": "2 samples are not what the index says (in the order of the shard: 2, 5)"}


def test_a_label_without_a_class_is_found(copy: Path) -> None:
    table = json.loads((copy / "manifest.json").read_bytes())
    table["classes"] = table["classes"][:2]
    (copy / "manifest.json").write_text(json.dumps(table))
    assert "a label past the 2 classes" in problems(copy)["shard-000000.tar"]


def test_indexes_are_made_again_only_where_the_shard_is_sound(copy: Path, built: Path) -> None:
    (copy / "shard-000000.tar.idx").unlink()
    patch(copy / "shard-000001.tar.idx", lambda data: data[:-5])
    (copy / "shard-000002.tar.idx").unlink()
    patch(copy / "shard-000002.tar", flip(5000))
    report = verify(str(copy), repair_index=True, quiet=True)
    assert report.repaired == ("shard-000000.tar.idx", "shard-000001.tar.idx")
    assert {problem.name for problem in report.problems} == {"shard-000002.tar", "shard-000002.tar.idx"}
    for name in report.repaired:
        assert (copy / name).read_bytes() == (built / name).read_bytes()


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="holds no shards"):
        verify(str(tmp_path), quiet=True)


@pytest.mark.server
def test_a_build_into_a_store_is_the_local_one_and_its_damage_is_found(tmp_path: Path, s3: SeaweedFS) -> None:
    tree = write_folder(tmp_path / "in", {**classed(), "class1/bad.jpg": b"x"})
    run(tree, tmp_path / "local")
    url = s3.make_bucket("verify") + "/data set é"
    run(tree, url, destination_options=s3.options, workers=1)
    files = s3.filesystem()
    remote = {path.removeprefix("verify/data set é/"): files.cat_file(path) for path in files.find("verify/data set é")}
    assert remote == contents(tmp_path / "local")
    assert run(tree, url, destination_options=s3.options).already
    assert not verify(url, s3.reader_options, quiet=True).problems

    shard = remote["shard-000000.tar"]
    files.pipe_file("verify/data set é/shard-000000.tar", flip(9000)(shard))
    files.pipe_file("verify/data set é/shard-000001.tar", remote["shard-000001.tar"][:-700])
    files.rm_file("verify/data set é/shard-000002.tar")
    files.rm_file("verify/data set é/shard-000003.tar.idx")
    files.pipe_file("verify/data set é/extra", b"1")
    assert problems(url, options=s3.options).keys() == {
        *("shard-000000.tar", "shard-000001.tar", "shard-000002.tar", "shard-000003.tar.idx", "extra"),
    }
    with pytest.raises(ShardError, match="3 shards are missing or cut short"):
        run(tree, url, destination_options=s3.options)
    run(tree, url, destination_options=s3.options, overwrite=True)
    assert list(problems(url, options=s3.options)) == ["extra"]


@pytest.mark.server
def test_a_build_into_a_store_that_goes_away_goes_on_when_it_is_back(tmp_path: Path) -> None:
    import s3fs

    tree = write_folder(tmp_path / "in", classed())
    with SeaweedFS(tmp_path / "server") as server:
        url = server.make_bucket("gone")
        done = 0

        def crash_after_two(name: str) -> None:
            nonlocal done
            done += name.endswith(".tar")
            if done == 3:
                server.kill()

        adopt = Store.adopt_file
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Store, "adopt_file", lambda store, source, name: (crash_after_two(name), adopt(store, source, name))[1])
            patched.setattr(s3fs.S3FileSystem, "retries", 1)
            with pytest.raises(BuildFailed, match=r"(?s)2 of 4 shards are there.*shard-000002\.tar: s3://gone/shard-000002\.tar"):
                # the client would wait for the server for a while
                run(tree, url, destination_options={**server.options, "config_kwargs": {"retries": {"max_attempts": 0}}})
        server.start()
        run(tree, url, destination_options=server.options)
        files = server.filesystem()
        assert {path.removeprefix("gone/"): files.cat_file(path) for path in files.find("gone")}.keys() == contents_of(tree, tmp_path)
        assert not verify(url, server.options, quiet=True).problems


def contents_of(tree: Path, folder: Path) -> set[str]:
    run(tree, folder / "fresh")
    return set(shards_only(folder / "fresh")) | {"manifest.json"}


def pictures_that_can_not_be_read() -> dict[str, bytes]:
    photograph = photographs(1)[0]
    return {
        "floats": encoded(np.zeros((40, 40), np.float32), "TIFF"),
        "wide integers": encoded(np.full((40, 40), 70_000, np.int32), "TIFF"),
        "no picture": b"hello",
        "cut short": photograph[: len(photograph) // 2],
        "lost pixels": photograph[: len(photograph) // 2] + b"\xff\xd9",
        "cut PNG": encoded(np.zeros((40, 40, 3), np.uint8), "PNG")[:-30],
    }


@pytest.mark.parametrize(("decode", "count"), [(False, 3), (True, 6)])
def test_pictures_that_can_not_be_read_are_counted_by_the_rule_of_the_training(tmp_path: Path, decode: bool, count: int) -> None:
    """They are problems of a data set that was built; in tars of others they are counted, and training replaces them."""
    bad = pictures_that_can_not_be_read()
    for picture in bad.values():
        with pytest.raises(PictureRejected):
            read_rgb(picture, 10**6)
    write_dataset(tmp_path / "built", [*photographs(10), *bad.values()], [16])
    found = verify(str(tmp_path / "built"), quiet=True, decode=decode)
    assert found.unreadable == count
    (problem,) = found.problems
    assert problem.what.startswith(f"{count} pictures can't be read, which training replaces: 000000010 floating-point values")

    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(tmp_path / "built" / "shard-000000.tar", tars / "0.tar")
    assert main(["index", str(tars)]) == 0
    found = verify(str(tars), quiet=True, decode=decode)
    assert found.problems == ()
    assert found.unreadable == count
    assert [note.name for note in found.notes] == ["0.tar"]
    data = DataConfig(shards=str(tars), threads=1, lanes=1, max_bad_fraction=1)
    with StreamLoader(StreamConfig(data, image_size=96, global_batch=16, epochs=1)) as loader:
        (batch,) = loader
        assert set(batch.sample_ids.tolist()) <= set(range(10))
        found_bad = [loader.quarantine.find(number) for number in range(10, 16)]
    assert all(each is not None and each.cause == "undecodable" for each in found_bad)


def test_pictures_of_tars_without_digests_are_read_only_to_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "built", [*photographs(4), b"hello"], [5])
    (tmp_path / "tars").mkdir()
    shutil.copy(tmp_path / "built" / "shard-000000.tar", tmp_path / "tars" / "0.tar")
    assert main(["index", str(tmp_path / "tars"), "--digests", "none"]) == 0
    assert verify(str(tmp_path / "tars"), quiet=True).unreadable == 0
    assert main(["verify", str(tmp_path / "tars"), "--decode"]) == 0
    assert "0.tar: 1 picture can't be read, which training replaces: 000000004 not in a picture format" in capsys.readouterr().out
