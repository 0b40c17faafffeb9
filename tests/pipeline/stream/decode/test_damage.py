"""Nothing that a decoder raises, of any type, ends a run or a build: a damaged picture is refused with its reason, or gives its pixels."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, JpegImagePlugin

from pipeline.config import DataConfig
from pipeline.evaluation.embedding.pictures import PictureCutter
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Box, CropRule
from pipeline.stream.decode.decoder import make_decoder
from pipeline.stream.decode.jpeg import decode_rows
from pipeline.stream.loader import StreamConfig, StreamLoader
from shards.build.picture import PictureRules, StoredPicture, prepare
from shards.dataset.jpeg_header import read_frame
from shards.dataset.pixels import PictureRejected, check_header, read_rgb
from tests.datasets import photographs, write_dataset
from tests.faults.fuzzing import mutate

SIDE, MOST = 64, 10**6
PIXELS = np.asarray(Image.open(io.BytesIO(photographs(1, SIDE, SIDE)[0])))
RULE = CropRule("center", False, MOST)


def sampled(columns: int, rows: int) -> bytes:
    """A JPEG with blocks of these columns and rows of brightness: 4 x 1 and 1 x 4 (4:4:1) have as many, laid out otherwise."""
    name = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (1, 4): "411"}[columns, rows]
    data = bytearray(simplejpeg.encode_jpeg(PIXELS, 90, "RGB", name))
    if (columns, rows) == (1, 4):
        place = data.index(b"\xff\xc0")
        data[place + 5 : place + 9] = (SIDE // 8 * 32).to_bytes(2, "big") + (SIDE // 32 * 8).to_bytes(2, "big")
        data[place + 11] = 0x14
    return bytes(data)


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: -len(data) // 3],
    "stray": lambda data: data[:-2] + bytes(9) + data[-2:],
    "fill": lambda data: data[:2] + b"\xff" + data[2:],
    "arithmetic": lambda data: data.replace(b"\xff\xc0", b"\xff\xc9", 1),
    "flipped": lambda data: data[:300] + bytes([data[300] ^ 0x10]) + data[301:],
}
LOSES_NOTHING = {"stray", "fill"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("sampling", [(1, 1), (2, 2), (4, 1), (1, 4)])
def test_a_jpeg_of_any_sampling_is_refused_or_read_in_every_form(sampling: tuple[int, int], damage: str) -> None:
    data, out = DAMAGES[damage](sampled(*sampling)), np.zeros((16, 16, 3), np.uint8)
    (reason,) = make_decoder().crops([data], [out], RULE, [1])
    if damage in LOSES_NOTHING:
        assert reason is None
        assert prepare(data, PictureRules(resize=None)).data == data
        np.testing.assert_array_equal(read_rgb(data, MOST), read_rgb(sampled(*sampling), MOST))
    elif damage == "cut":
        assert "can't be decoded: OSError: image file is truncated" in str(reason)
    for resize in (None, 32, 256):
        refused_or_read(data, resize)


def refused_or_read(data: bytes, resize: int | None) -> StoredPicture | None:
    try:
        stored = prepare(data, PictureRules(resize=resize, max_pixels=MOST))
    except PictureRejected as error:
        assert "\n" not in str(error)  # noqa: PT017 - whether it raises depends on the damage
        return None
    assert read_rgb(stored.data, MOST).dtype == np.uint8, "what a build stores, the training reads"
    return stored


@pytest.mark.parametrize("error", [KeyError(6), RuntimeError("odd"), AssertionError(), MemoryError(), TypeError("x" * 500)], ids=type)
def test_an_error_of_any_type_concerns_one_picture(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    jpeg, png = sampled(2, 2), saved("PNG")
    decoder, out = make_decoder(), np.zeros((3, SIDE, SIDE, 3), np.uint8)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    assert decoder.crops([jpeg, png], list(out[:2]), RULE, [1, 2]) == [None, None], "Pillow reads it"
    np.testing.assert_array_equal(out[1], PIXELS)
    assert len(prepare(jpeg, PictureRules()).data) > 0
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    reasons = decoder.crops([jpeg, png, jpeg], list(out), RULE, [1, 2, 3])
    assert reasons[1] is None
    for reason in (reasons[0], reasons[2]):
        assert reason is not None
        assert f"can't be decoded: {type(error).__name__}" in reason
        assert len(reason) <= 200
    for resize in (None, 32):
        with pytest.raises(PictureRejected, match=type(error).__name__):
            prepare(jpeg, PictureRules(resize=resize))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_in_the_middle_is_refused_in_any_colours(mode: str) -> None:
    """Pillow alone would show grey where a file ends properly in spite of it."""
    data = saved("JPEG", Image.fromarray(PIXELS).convert(mode))
    data = data[: len(data) * 2 // 3] + b"\xff\xd9"
    Image.open(io.BytesIO(data)).load()
    for resize in (None, 32, 256):
        assert refused_or_read(data, resize) is None
    (reason,) = make_decoder().crops([data], [np.zeros((SIDE, SIDE, 3), np.uint8)], RULE, [1])
    assert "premature end of data" in str(reason)


def test_a_run_goes_on_over_jpegs_that_leave_the_fast_path(tmp_path: Path) -> None:
    odd = [DAMAGES[damage](sampled(1, 4)) for damage in ("cut", "stray", "fill")]
    write_dataset(tmp_path, [*photographs(9, SIDE, SIDE), *odd], [12])
    data = DataConfig(shards=str(tmp_path), crop="center", threads=1, lanes=1, max_bad_fraction=0.5)
    with StreamLoader(StreamConfig(data, image_size=32, global_batch=12, epochs=1)) as loader:
        (batch,) = loader
        bad = loader.quarantine.find(9)
    assert bad is not None
    assert "OSError: image file is truncated" in str(bad)
    assert {10, 11} <= set(batch.sample_ids.tolist())


def test_damaged_pictures_of_every_format_are_refused_or_read_the_same_everywhere(draw: random.Random) -> None:
    """The training reads, in every crop, all that a build stores; and a build with `--resize none` stores all that can be read whole."""
    grey = Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 15)
    files = [sampled(*each) for each in ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (1, 4))]
    files += [prepare(saved("PNG"), PictureRules()).data, saved("JPEG", progressive=True), saved("MPO")]
    files += [saved("JPEG", Image.fromarray(PIXELS).convert("CMYK")), saved("PNG", grey), saved("TIFF", grey)]
    files += [saved(kind) for kind in ("PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")]
    decoder, out = make_decoder(), np.zeros((24, 24, 3), np.uint8)
    cutter = PictureCutter(decoder, 256, MOST)
    read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(600):
            data = draw.choice(files)
            data = mutate(DAMAGES[draw.choice(list(DAMAGES))](data) if draw.random() < 0.3 else data, draw)
            try:
                read_rgb(data, MOST)
            except PictureRejected:
                whole = False
            else:
                whole = True
                read += 1
                check_header(data, MOST)
            stored = refused_or_read(data, None)
            refused_or_read(data, 32)
            assert (stored is not None) == whole
            rule = CropRule(draw.choice(("random", "random_resized", "center")), True, MOST)
            (reason,), cut = decoder.crops([data], [out], rule, [number]), cutter.cut([data], [out])
            assert not whole or (reason is None and cut == [None])
            frame = read_frame(data)
            if frame is not None and frame.height * frame.width <= MOST:
                rows = decode_rows(data, frame, Box(0, 0, frame.height, frame.width, False))
                assert rows is None or whole, "no crop shows what is refused whole"
    assert 100 < read < 500


@pytest.mark.skipif(nvimgcodec.version() is None, reason="nvImageCodec (the extra `decode`) is not installed")
def test_a_rectangle_that_nvimgcodec_refuses_is_decoded_by_the_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError(6)

    monkeypatch.setattr(nvimgcodec, "_decoder", fail)
    out, expected = np.zeros((2, 32, 32, 3), np.uint8)
    for name, place in (("nvimgcodec", out), ("simplejpeg", expected)):
        assert make_decoder(name).crops([sampled(2, 2)], [place], RULE, [1]) == [None]  # type: ignore[arg-type]
    np.testing.assert_array_equal(out, expected)
