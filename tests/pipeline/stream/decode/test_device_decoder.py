"""A decoder whose crops are made on a device gives the crops of the host. On a CPU the same steps run as on a GPU, but for the library."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import DataConfig
from pipeline.mapping import ConfigError
from pipeline.stream.buffers import BufferPool
from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import CropRule
from pipeline.stream.decode.decoder import Decoder, make_decoder
from pipeline.stream.decode.device_decoder import DeviceDecoder, resized
from pipeline.stream.decode.jpeg import decode_rows
from pipeline.stream.decode.resize import resize
from pipeline.stream.loader import Batch, StreamConfig, StreamLoader
from pipeline.training.device_batches import DeviceCopies, arrive
from pipeline.training.phases import Phases
from tests.datasets import photographs, write_dataset

LIMIT, SIDE = 10_000_000, 64
RANDOM, RESIZED, CENTER = (CropRule(crop, True, LIMIT) for crop in ("random", "random_resized", "center"))
ON_CPU = DeviceDecoder("on a CPU", decode_rows, torch.device("cpu"))
installed = pytest.mark.skipif(nvimgcodec.version() is None, reason="nvImageCodec (the extra `decode`) is not installed")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def encoded(picture: Image.Image, kind: str, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    picture.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def on_host(data: Sequence[bytes], rule: CropRule) -> tuple[NDArray[np.int64], list[str | None]]:
    out = np.zeros((len(data), SIDE, SIDE, 3), np.uint8)
    reasons = make_decoder("nvimgcodec").crops(data, list(out), rule, range(len(data)))
    return out.astype(np.int64), reasons


def on_device(decoder: DeviceDecoder, data: Sequence[bytes], rule: CropRule) -> tuple[NDArray[np.int64], list[str | None]]:
    out = decoder.new_images((len(data), SIDE, SIDE, 3), BufferPool(pinned=False)).zero_()
    reasons = decoder.crops(data, out, rule, range(len(data)))  # type: ignore[arg-type]
    return out.cpu().numpy().astype(np.int64), reasons


@installed
@pytest.mark.parametrize(("rule", "levels"), [(RANDOM, 0), (CENTER, 0), (RESIZED, 1)], ids=["random", "center", "resized"])
def test_crops_are_those_of_the_host(rule: CropRule, levels: int) -> None:
    data = [each for height in (64, 100, 300) for each in photographs(4, height, height + 37)]
    (found, reasons), (expected, _) = on_device(ON_CPU, data, rule), on_host(data, rule)
    assert reasons == [None] * len(data)
    assert np.abs(found - expected).max() <= levels
    assert expected.std() > 10


@installed
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_on_the_host(orientation: int) -> None:
    picture = Image.open(io.BytesIO(photographs(1, 100, 140)[0]))
    data = [encoded(picture, "JPEG", orientation)]
    for rule in (RANDOM, CropRule("random", True, LIMIT, turn=False)):
        np.testing.assert_array_equal(on_device(ON_CPU, data, rule)[0], on_host(data, rule)[0])


@installed
def test_what_the_device_refuses_goes_the_way_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside good ones, whose crops stay on the device, and with the reasons of the host. A call that raises refuses one picture alone."""
    good, other = photographs(2, 90, 120)
    png, grey = encoded(Image.open(io.BytesIO(good)), "PNG"), encoded(Image.open(io.BytesIO(good)).convert("L"), "JPEG")
    data = [good, png, good[: len(good) // 3], b"no picture", grey, other]
    (found, reasons), (expected, reasons_of_host) = on_device(ON_CPU, data, CENTER), on_host(data, CENTER)
    assert reasons == reasons_of_host
    assert [reason is None for reason in reasons] == [True, True, False, False, True, True]
    np.testing.assert_array_equal(found, expected)

    class Raising:
        """The library where it raises for several pictures at once, and for the first picture that it is given alone."""

        def __init__(self, decoder: Any) -> None:
            self.decoder, self.alone = decoder, 0

        def decode(self, streams: Sequence[Any], **options: Any) -> Any:
            self.alone += len(streams) == 1
            if len(streams) > 1 or self.alone == 1:
                raise RuntimeError("an error of the library")
            return self.decoder.decode(streams, **options)

    new_decoder = nvimgcodec.new_decoder

    def raising(device: int | None) -> tuple[Any, Any]:
        decoder, parameters = new_decoder(device)
        return Raising(decoder), parameters

    monkeypatch.setattr(nvimgcodec, "new_decoder", raising)
    with ThreadPoolExecutor(1) as pool:  # a new thread has a decoder of its own
        again, reasons = pool.submit(on_device, ON_CPU, data, CENTER).result()
    assert reasons == reasons_of_host
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (70, 66), (128, 128), (200, 133), (500, 90)])
def test_the_resize_is_that_of_the_host_within_a_level(height: int, width: int) -> None:
    part = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    resize(part, out)
    found = resized(torch.from_numpy(part), SIDE).numpy()
    assert np.abs(found.astype(int) - out).max() <= 1


def batches(folder: Path, decoder: Decoder, count: int) -> list[Batch]:
    with StreamLoader(_config(folder)) as loader:
        loader.decoder = loader._filler.decoder = decoder
        return list(itertools.islice(loader, count))


def _config(folder: Path) -> StreamConfig:
    return StreamConfig(DataConfig(shards=str(folder), threads=2, max_bad_fraction=0.2), image_size=SIDE, global_batch=8)


@installed
def test_the_batches_of_a_loader_are_those_of_the_host(tmp_path: Path) -> None:
    """With a picture that can't be decoded, whose substitute is found alike."""
    write_dataset(tmp_path, [*photographs(23, 90, 120), b"no picture"], [12, 12])
    found, expected = (batches(tmp_path, decoder, 6) for decoder in (ON_CPU, make_decoder("nvimgcodec")))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)


@installed
def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^data\.decoder: nvimgcodec_gpu .* torch finds none here: set data\.decoder to nvimgcodec or"):
        make_decoder("nvimgcodec_gpu")


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvimgcodec, "version", lambda: None)
    with pytest.raises(ConfigError, match=r"^data\.decoder: nvImageCodec is not installed"):
        make_decoder("nvimgcodec_gpu")


@installed
@pytest.mark.gpu
@on_gpu
def test_a_gpu_gives_nearly_the_pixels_of_the_host(tmp_path: Path) -> None:
    decoder = make_decoder("nvimgcodec_gpu")
    assert isinstance(decoder, DeviceDecoder)
    assert torch.cuda.get_device_name(decoder.device) in decoder.description
    data = [each for height in (64, 100, 300) for each in photographs(4, height, height + 37)]
    for rule in (RANDOM, RESIZED, CENTER):
        (found, reasons), (expected, _) = on_device(decoder, data, rule), on_host(data, rule)
        assert reasons == [None] * len(data)
        assert np.abs(found - expected).mean() < 1.5
    write_dataset(tmp_path, photographs(24, 90, 120), [12, 12])
    copies = DeviceCopies.to(decoder.device)
    assert copies is not None
    sums = list[torch.Tensor]()
    with StreamLoader(_config(tmp_path), copy=copies.start) as loader:
        loader.decoder = loader._filler.decoder = decoder
        for batch in itertools.islice(loader, 6):
            arrive(batch, Phases.of(decoder.device))
            torch.cuda._sleep(50_000_000)  # the computation is far behind: images that are dropped must not be written over
            sums.append(batch.images.double().sum())
    again = [each.images.double().sum().item() for each in batches(tmp_path, decoder, 6)]
    assert torch.stack(sums).tolist() == again
