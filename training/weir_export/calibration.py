"""The pictures over which int8 ranges are measured: free photographs and the drawn scenes, varied with a fixed
seed; or a folder of the user's photographs instead of the former."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from . import packages
from .picture import scenes
from .preprocess import CROP, load, normalise

# Sample photographs in scikit-image: public domain, CC0 or without known restrictions (see training/README.md).
PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SEED = 1
# Colour changes of each crop: gain and offset for red, green and blue.
CASTS = (
    ((1.0, 1.0, 1.0), (0, 0, 0)),
    ((1.0, 1.0, 1.0), (0, 0, 0)),
    ((0.5, 0.9, 1.0), (0, 10, 20)),  # under water
    ((1.4, 1.4, 1.4), (-10, -10, -10)),  # harsh light
    ((0.5, 0.5, 0.5), (0, 0, 0)),  # dusk
    ((0.9, 1.0, 0.8), (10, 10, 0)),  # murky
)


def _variations(image: Image.Image, rng) -> list:
    """One crop per cast, [1, 3, 224, 224] each; the first covers the whole shorter side."""
    inputs = []
    for index, (gain, offset) in enumerate(CASTS):
        share = 1.0 if index == 0 else rng.uniform(0.35, 0.9)
        side = int(min(image.size) * share)
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR, box), np.float32)
        if index % 2:
            pixels = pixels[:, ::-1]
        inputs.append(normalise(np.clip(np.round(pixels * gain + offset), 0, 255)))
    return inputs


def packaged(cache: Path) -> list:
    """The default inputs, downloading the photographs if they are not in the cache."""
    wheel = packages.fetch(packages.PHOTOS, cache)
    pictures = [Image.open(io.BytesIO(packages.read_member(wheel, f"skimage/data/{name}"))) for name in PHOTOS]
    pictures += [scenes.anemone_fish(), scenes.sea_floor()]
    rng = np.random.default_rng(SEED)
    return [x for picture in pictures for x in _variations(picture.convert("RGB"), rng)]


def from_folder(folder: Path) -> list:
    """The photographs in `folder`, preprocessed as in the appliance. Raises ValueError if there is none."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return [load(path) for path in files]
