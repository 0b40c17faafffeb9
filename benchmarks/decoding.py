"""The cost of decoding, cropping and resizing one photograph, stage by stage, and how near the result comes to Pillow's pixels.

python benchmarks/decoding.py PHOTOGRAPHS [--pictures 80] [--rounds 5] [--stored full 256]

One thread; the stages take turns, and each picture's least CPU time of all rounds counts, so that other work on the machine does not.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.stream.decode import nvimgcodec
from pipeline.stream.decode.crop import Box, Crop, CropRule, choose
from pipeline.stream.decode.decoder import Decoder, DecoderName, make_decoder
from pipeline.stream.decode.jpeg import decode, decode_rows
from pipeline.stream.decode.resize import resize
from pipeline.stream.decode.segments import cut
from shards.build.picture import PictureRules, prepare
from shards.dataset.jpeg_header import Frame, read_frame

SIZE = 227
LIMIT = 100_000_000
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A stored picture, its crop for a key, and the crop's pixels."""

    data: bytes
    key: int
    frame: Frame
    box: Box
    part: Pixels


def load(folder: Path, count: int, shorter: int | None, crop: Crop) -> list[Sample]:
    """The first plain JPEGs of every part of a folder, as they are or stored with a shorter side."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    samples = []
    for key, path in enumerate(paths[:: max(1, len(paths) // count)]):
        data = prepare(path.read_bytes(), PictureRules(resize=shorter)).data
        frame = read_frame(data)
        if frame is None or frame.height * frame.width > 500_000:  # a few huge ones would be half of the sum
            continue
        box = choose(crop, True, key, frame.height, frame.width, SIZE)
        samples.append(Sample(data, key, frame, box, decode(data, LIMIT)[box.top : box.bottom, box.left : box.right].copy()))
    return samples


def area_or_linear(part: Pixels, out: Pixels) -> None:
    """The resize of a pool of threads with OpenCV: the area average where an axis shrinks."""
    shrinks = part.shape[0] >= SIZE and part.shape[1] >= SIZE
    cv2.resize(part, (SIZE, SIZE), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def torch_antialias(part: Pixels, out: Pixels) -> None:
    """PyTorch's triangle filter on bytes."""
    planes = torch.from_numpy(part).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(planes, (SIZE, SIZE), mode="bilinear", antialias=True)
    out[:] = found[0].permute(1, 2, 0).numpy()


def pillow_resize(part: Pixels, out: Pixels) -> None:
    """Pillow's triangle filter: the reference."""
    out[:] = np.asarray(Image.fromarray(part).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


RESIZES: dict[str, Callable[[Pixels, Pixels], object]] = {
    "OpenCV INTER_LINEAR (aliases)": lambda part, out: cv2.resize(part, (SIZE, SIZE), dst=out, interpolation=cv2.INTER_LINEAR),
    "OpenCV INTER_AREA": area_or_linear,
    "torch antialias": torch_antialias,
    "smoothed resize (ours)": resize,
    "Pillow BILINEAR": pillow_resize,
}


def stages(crop: Crop, out: Pixels) -> dict[str, Callable[[Sample], object]]:
    """The stages by name: each a function that takes one picture through it."""

    rule = CropRule(crop, True, LIMIT)

    def whole(sample: Sample) -> Pixels:
        pixels = decode(sample.data, LIMIT)
        return pixels[sample.box.top : sample.box.bottom, sample.box.left : sample.box.right]

    def segments(sample: Sample) -> Pixels | None:
        (piece,) = cut([sample.data], [sample.frame], [sample.box])
        return whole(sample) if piece is None else piece.decode(sample.box)

    def pillow(sample: Sample) -> None:
        box = sample.box
        with Image.open(io.BytesIO(sample.data)) as picture:
            edges = (box.left, box.top, box.right, box.bottom)
            out[:] = np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=edges))

    def resized(method: Callable[[Pixels, Pixels], object], sample: Sample) -> None:
        method(sample.part, out)

    def ours(decoder: Decoder, sample: Sample) -> None:
        decoder.crops([sample.data], [out], rule, [sample.key])

    def bare(sample: Sample) -> None:
        pixels = simplejpeg.decode_jpeg(sample.data, "RGB")
        area_or_linear(pixels[sample.box.top : sample.box.bottom, sample.box.left : sample.box.right], out)

    found: dict[str, Callable[[Sample], object]] = {
        "decode: whole picture": whole,
        "decode: rows of the crop": lambda sample: decode_rows(sample.data, sample.frame, sample.box),
        "decode: segments of the crop": segments,
    }
    if nvimgcodec.version() is not None:
        found["decode: rectangle, nvImageCodec"] = lambda sample: nvimgcodec.decode_region(sample.data, sample.frame, sample.box)
    if crop == "random_resized":
        for filter_name, method in RESIZES.items():
            found[f"resize: {filter_name}"] = partial(resized, method)
    found["all: Pillow"] = pillow
    found["all: simplejpeg + OpenCV INTER_AREA"] = bare
    names: tuple[DecoderName, ...] = ("simplejpeg",) if nvimgcodec.version() is None else ("simplejpeg", "nvimgcodec")
    for name in names:
        found[f"all: Decoder.crops, {name}"] = partial(ours, make_decoder(name))
    return found


def least(samples: list[Sample], methods: dict[str, Callable[[Sample], object]], rounds: int) -> dict[str, float]:
    """Mean over the pictures of the least CPU time of any round, in seconds."""
    seconds = {name: np.full(len(samples), np.inf) for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():  # one stage over all pictures, as a loader's thread goes: its code and memory stay warm
            for place, sample in enumerate(samples):
                started = time.thread_time()
                method(sample)
                seconds[name][place] = min(seconds[name][place], time.thread_time() - started)
    return {name: float(taken.mean()) for name, taken in seconds.items()}


def fidelity(samples: list[Sample]) -> None:
    """Prints how far each resize is from Pillow's, over the crops that shrink."""
    print("\n| resize | mean dB to Pillow | worst |\n|---|---|---|")
    reference, out = np.empty((2, SIZE, SIZE, 3), np.uint8)
    for name, method in RESIZES.items():
        found = []
        for sample in samples:
            if max(sample.box.height, sample.box.width) > SIZE and method is not pillow_resize:
                pillow_resize(sample.part, reference)
                method(sample.part, out)
                error = ((reference.astype(np.float64) - out) ** 2).mean()
                found.append(10 * np.log10(255**2 / max(error, 1e-3)))
        if found:
            print(f"| {name} | {np.mean(found):.1f} | {np.min(found):.1f} |")


def main() -> None:
    """Prints one table a way of storing and cropping."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pictures", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stored", nargs="+", choices=("full", "256"), default=["full", "256"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    crops: tuple[Crop, ...] = ("random_resized", "random")
    for stored in options.stored:
        for crop in crops:
            samples = load(options.photographs, options.pictures, None if stored == "full" else int(stored), crop)
            seconds = least(samples, stages(crop, np.empty((SIZE, SIZE, 3), np.uint8)), options.rounds)
            bare = seconds["all: simplejpeg + OpenCV INTER_AREA"]
            print(f"\n{len(samples)} pictures stored at {stored}, {crop} {SIZE}\n")
            print("| stage | ms | pictures/s | of simplejpeg + OpenCV |")
            print("|---|---|---|---|")
            for name, taken in seconds.items():
                print(f"| {name} | {taken * 1e3:.3f} | {1 / taken:.0f} | {f'{bare / taken:.2f}' if name.startswith('all') else ''} |")
            if crop == "random_resized":
                fidelity(samples)


if __name__ == "__main__":
    main()
