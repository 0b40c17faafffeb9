"""The pictures of the demo, cut from what scikit-image and scikit-learn ship, without a download.

Of each photograph the left two thirds are trained on and the right third is held back, so that no pixel of a held-back crop was ever seen.
A third set, with labels for a probe of the encoder, has tiles that don't overlap: of the held-back thirds, and of pictures that no crop is
trained on. In: a folder. Out: a folder of one folder a picture for each of the three sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""A picture, uint8 (H, W, 3), or (H, W) in grey."""
TRAINED_SIDE = 160
"""Pixels of a crop that is trained on; each step takes 128 x 128 of them anew."""
SIDE = 128
"""Pixels of the pictures that the recipe takes, and of a held-back crop."""
LARGEST = 256
"""Pixels of the photograph on the side of the largest crop; the smallest is `SIDE`, so that no crop is enlarged without need."""
TILE = 48
"""Pixels on the side of a labelled tile, before it is enlarged to `SIDE`."""
_TURNED = 0.75  # of the crops that are trained on get other hues
_DARKER, _BRIGHTER = 0.4, 0.2  # largest changes of the logarithm of their brightness


@dataclass(frozen=True)
class DemoPictures:
    """The three sets, each a folder of one folder a picture that its crops were cut from.

    Attributes:
        trained_on: crops of the left two thirds, in changed colours.
        held_back: crops of the right third as they are.
        labelled: tiles in grey, whose label is the picture that they were cut from.
    """

    trained_on: Path
    held_back: Path
    labelled: Path


def shipped_photographs() -> dict[str, Pixels]:
    """Reads the colour photographs of everyday things, by name."""
    from skimage import data  # noqa: PLC0415 - neither is needed for pictures of one's own
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    samples = load_sample_images()
    found = {Path(name).stem: np.asarray(image) for name, image in zip(samples.filenames, samples.images, strict=True)}
    found |= {"astronaut": data.astronaut(), "cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}
    return found | {"motorcycle": data.stereo_motorcycle()[0]}


def other_pictures() -> dict[str, Pixels]:
    """Reads pictures that no crop is trained on, by name: textures, and what microscopes and telescopes see."""
    from skimage import data  # noqa: PLC0415

    names = ("brick", "camera", "cell", "coins", "grass", "gravel", "hubble_deep_field", "immunohistochemistry", "moon", "retina")
    return {name: getattr(data, name)() for name in names}


def cut_pictures(
    folder: Path, photographs: Mapping[str, Pixels], others: Mapping[str, Pixels], trained_on: int = 320, held_back: int = 36
) -> DemoPictures:
    """Cuts the three sets, unless this has been done; the same crops each time.

    Args:
        folder: folder of the three sets.
        photographs: photographs to train on and to hold back from, uint8 (H, W, 3), by name; a third is `SIDE` wide or wider.
        others: pictures for the labelled tiles alone, by name.
        trained_on: number of crops of a photograph's left two thirds.
        held_back: number of crops of its right third.
    """
    sets = DemoPictures(folder / "trained-on", folder / "held-back", folder / "labelled")
    finished = folder / "cut"
    if finished.exists():
        return sets
    random = np.random.default_rng(0)
    for name, photograph in photographs.items():
        left, right = divided(photograph)
        save(sets.trained_on / name, [recoloured(random_crop(left, TRAINED_SIDE, random), random) for _ in range(trained_on)])
        save(sets.held_back / name, [random_crop(right, SIDE, random) for _ in range(held_back)])
        save(sets.labelled / name, grey_tiles(right, random))
    for name, picture in others.items():
        save(sets.labelled / name, grey_tiles(picture, random))
    finished.touch()
    return sets


def divided(photograph: Pixels) -> tuple[Pixels, Pixels]:
    """Divides a photograph into the left two thirds, which are trained on, and the right third, which is held back."""
    border = photograph.shape[1] * 2 // 3
    return photograph[:, :border], photograph[:, border:]


def random_crop(region: Pixels, side: int, random: np.random.Generator) -> Pixels:
    """Cuts a square whose size is drawn from `SIDE` to `LARGEST` on a logarithmic scale, and resizes it to `side`."""
    height, width = region.shape[:2]
    largest = max(SIDE, min(height, width, LARGEST))
    size = round(math.exp(random.uniform(math.log(SIDE), math.log(largest))))
    top, left = (int(random.integers(0, length - size + 1)) for length in (height, width))
    return resized(region[top : top + size, left : left + size], side)


def recoloured(crop: Pixels, random: np.random.Generator) -> Pixels:
    """Turns the hues of a crop and changes its brightness, because a network that has seen the few colours of a few photographs paints no
    others into a hole."""
    if random.random() < _TURNED:
        colours = np.array(Image.fromarray(crop).convert("HSV"))
        colours[..., 0] += np.uint8(random.integers(256))  # hues are a circle of 256
        crop = np.asarray(Image.fromarray(colours, "HSV").convert("RGB"))
    factor = math.exp(random.uniform(-_DARKER, _BRIGHTER))
    return np.asarray(np.clip(crop * factor, 0, 255), np.uint8)


def grey_tiles(picture: Pixels, random: np.random.Generator, most: int = 100) -> list[Pixels]:
    """Cuts tiles that don't overlap, in grey because their colours alone would tell one picture from another, and draws at most some."""
    grey = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    height, width = grey.shape[:2]
    places = [(top, left) for top in range(0, height - TILE + 1, TILE) for left in range(0, width - TILE + 1, TILE)]
    chosen = random.permutation(len(places))[:most]
    return [resized(grey[top : top + TILE, left : left + TILE], SIDE) for top, left in (places[number] for number in chosen)]


def resized(picture: Pixels, side: int) -> Pixels:
    """Resizes a square picture, antialiased."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def save(folder: Path, pictures: list[Pixels]) -> None:
    """Writes pictures as numbered JPEG files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.jpg", quality=95)
