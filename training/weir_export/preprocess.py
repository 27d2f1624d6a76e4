"""The bundle's preprocessing: a picture to the network's input, as the appliance defines it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RESIZE, CROP = 256, 224
MEAN, STD = 127.0, 128.0


def resized_size(width: int, height: int) -> tuple:
    """(width, height) with the shorter side RESIZE and the longer rounded to the nearest, halves up."""
    short = min(width, height)
    return tuple((side * RESIZE * 2 + short) // (2 * short) for side in (width, height))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """[CROP, CROP, 3] in 0..255 -> [1, 3, CROP, CROP] f32."""
    return ((pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None]


def preprocess(image: Image.Image) -> np.ndarray:
    """[1, 3, CROP, CROP] f32: EXIF orientation, antialiased triangle resize, centre crop, normalise."""
    rgb = ImageOps.exif_transpose(image).convert("RGB")
    rgb = rgb.resize(resized_size(*rgb.size), Image.Resampling.BILINEAR)
    left, top = (rgb.width - CROP) // 2, (rgb.height - CROP) // 2
    return normalise(np.asarray(rgb.crop((left, top, left + CROP, top + CROP))))


def load(path: Path) -> np.ndarray:
    """`preprocess` of the picture in a file."""
    with Image.open(path) as image:
        return preprocess(image)
