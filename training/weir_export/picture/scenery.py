"""What surrounds the fish: water, tentacles, stones, drifting specks, and the look of an underwater camera."""

import numpy as np
from PIL import Image

from . import canvas
from .canvas import HEIGHT, SCALE, WIDTH, mix, smoothstep


def pixels():
    """(x, y) of every canvas pixel, in finished pixels; each [HEIGHT * SCALE, WIDTH * SCALE]."""
    y, x = np.mgrid[0 : HEIGHT * SCALE, 0 : WIDTH * SCALE] / SCALE
    return x, y


def water(rng, top, bottom):
    """Colours of open water with slanting rays of light: [HEIGHT * SCALE, WIDTH * SCALE, 3]."""
    x, y = pixels()
    slant = x + 0.45 * y
    rays = np.clip(np.sin(slant / 31.0) * np.sin(slant / 12.7 + 1.3), 0, 1) * smoothstep(380, 0, y)
    return mix(top, bottom, smoothstep(-40, HEIGHT, y)) + (22.0 * rays + canvas.noise(rng, 9, -9, 9))[..., None]


def tentacles(image, rng, count, base_y, height, width, dark, light, across=(-20, WIDTH + 20)):
    """Swaying tentacles with swollen tips that rise from `base_y`."""
    t = np.linspace(0, 1, 70)
    for x in rng.uniform(*across, count):
        tall, shade = height * rng.uniform(0.6, 1.1), rng.uniform(0.8, 1.08)
        sway, bend, y = rng.uniform(-45, 45), rng.uniform(-30, 30), base_y + rng.uniform(-12, 12)
        path = canvas.bezier([(x, y), (x + bend, y - 0.4 * tall), (x + sway, y - 0.8 * tall), (x + sway, y - tall)], 70)
        tip = 0.55 * np.exp(-(((t - 0.95) / 0.045) ** 2))
        radii = width * rng.uniform(0.85, 1.15) * (1.0 - 0.38 * t + tip)
        canvas.tube(image, path, radii, np.multiply(dark, shade), np.multiply(light, shade))


def stones(image, rng, count, low, high, dark, light):
    """Rounded stones with their middles between the heights `low` and `high`, the far ones first."""
    angle, r = np.meshgrid(np.linspace(0, 2 * np.pi, 60), np.linspace(0, 1, 24), indexing="ij")
    for y in np.sort(rng.uniform(low, high, count)):
        x, size = rng.uniform(-30, WIDTH + 30), rng.uniform(24, 70)
        lump = 1 + 0.12 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.07 * np.sin(7 * angle + rng.uniform(0, 6))
        px, py = r * lump * np.cos(angle), r * lump * np.sin(angle)
        lit = np.clip(0.55 - 0.35 * px - 0.6 * py, 0, 1)[:-1, :-1] * rng.uniform(0.75, 1.05, (59, 23))
        canvas.mesh(image, np.stack([x + size * px, y + 0.7 * size * py], -1), mix(dark, light, lit))


def specks(image, rng, count):
    """Specks that drift in the water."""
    for _ in range(count):
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(0.4, 1.3)
        canvas.tube(image, np.array([[x, y]]), np.array([r]), (150, 190, 205), (215, 235, 240))


def photograph(picture: Image.Image, rng, haze=0.07, ripple=0.7, grain=5.0) -> Image.Image:
    """The picture as an underwater camera sees it: blue haze, rippling light, and the sensor's grain."""
    colours = np.asarray(picture, float)
    blobs = Image.fromarray(rng.integers(0, 256, (14, 18), dtype=np.uint8))
    light = np.asarray(blobs.resize(picture.size, Image.Resampling.BICUBIC), float)[..., None] / 255.0
    colours = mix(colours * (1.0 + ripple * (light - 0.5)), (30, 90, 120), np.full(colours.shape[:2], haze))
    colours = colours + rng.normal(0.0, grain, colours.shape[:2])[..., None]
    return Image.fromarray(np.clip(np.round(colours), 0, 255).astype(np.uint8), "RGB")
