"""The two scenes: an anemone fish at its anemone, and an empty sea floor. Always the same pixels, drawn once:
do not modify the returned pictures."""

import functools

import numpy as np
from PIL import Image

from . import canvas, clownfish, scenery
from .canvas import mix, smoothstep

TENTACLE_DARK, TENTACLE_LIGHT = (52, 78, 52), (164, 192, 134)
WEED_DARK, WEED_LIGHT = (18, 62, 36), (92, 150, 74)


@functools.cache
def anemone_fish() -> Image.Image:
    """An anemone fish among the tentacles of its anemone; 640 x 480 RGB."""
    rng = np.random.default_rng(7)
    image = canvas.background(scenery.water(rng, (38, 128, 172), (6, 34, 66)))
    # Row by row from far to near: base, height and width of the tentacles, blur, brightness.
    for base, height, width, soft, shade in (
        (200, 150, 8, 5.0, 0.45),
        (280, 160, 9, 4.0, 0.55),
        (370, 180, 9, 3.0, 0.70),
        (450, 190, 10, 2.0, 0.85),
    ):
        row = canvas.layer()
        dark, light = np.multiply(TENTACLE_DARK, shade), np.multiply(TENTACLE_LIGHT, shade)
        scenery.tentacles(row, rng, 60, base, height, width, dark, light)
        image.alpha_composite(canvas.blur(row, soft))
    clownfish.draw(image, (322, 222), 210, angle=0.18)
    near = canvas.layer()
    scenery.tentacles(near, rng, 45, 520, 170, 11, TENTACLE_DARK, TENTACLE_LIGHT)
    image.alpha_composite(canvas.blur(near, 0.6))
    return scenery.photograph(canvas.finish(image), rng)


@functools.cache
def sea_floor() -> Image.Image:
    """Sand, stones and weed, and no fish; 640 x 480 RGB."""
    rng = np.random.default_rng(11)
    x, y = scenery.pixels()
    open_water = scenery.water(rng, (70, 160, 186), (24, 86, 116))
    ripples = np.sin(y * 0.30 + 1.4 * np.sin(x / 60.0)) + canvas.noise(rng, 220, -0.8, 0.8)
    sand = mix((158, 145, 110), (206, 190, 146), smoothstep(-1.6, 1.6, ripples))
    sand = sand * (0.62 + 0.38 * smoothstep(270, 470, y))[..., None]
    shore = smoothstep(262, 300, y + 10 * np.sin(x / 70.0))[..., None]
    image = canvas.background(open_water * (1 - shore) + sand * shore)
    for draw, soft in (
        (lambda to: scenery.stones(to, rng, 13, 290, 420, (38, 44, 48), (150, 148, 136)), 0.6),
        (lambda to: scenery.tentacles(to, rng, 34, 400, 150, 4, WEED_DARK, WEED_LIGHT, (20, 220)), 0.5),
        (lambda to: scenery.tentacles(to, rng, 22, 430, 120, 4, WEED_DARK, WEED_LIGHT, (480, 630)), 0.5),
    ):
        part = canvas.layer()
        draw(part)
        image.alpha_composite(canvas.blur(part, soft))
    scenery.specks(image, rng, 60)
    return scenery.photograph(canvas.finish(image), rng)
