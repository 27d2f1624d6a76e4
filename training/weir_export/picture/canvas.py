"""Drawing helpers for the pictures: shaded meshes, tapering tubes, soft noise. Coordinates are in pixels of
the finished picture; the canvas itself is SCALE times as large and is shrunk at the end."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, SCALE = 640, 480, 3


def smoothstep(low, high, x):
    """0 below `low`, 1 above `high`, smooth in between; works on arrays."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mix(a, b, t):
    """Colours a -> b as t goes 0 -> 1. `t` is [...], the result [..., 3]."""
    return np.asarray(a, float) + (np.asarray(b, float) - np.asarray(a, float)) * np.asarray(t, float)[..., None]


def bezier(points, count):
    """`count` points of the Bezier curve with these control points: [count, 2]."""
    work = np.repeat(np.asarray(points, float)[:, None, :], count, axis=1)
    t = np.linspace(0.0, 1.0, count)[:, None]
    while len(work) > 1:
        work = work[:-1] * (1.0 - t) + work[1:] * t
    return work[0]


def noise(rng, cells, low=0.0, high=1.0):
    """Soft value noise over the whole canvas, [HEIGHT * SCALE, WIDTH * SCALE] f64; `cells` blobs per row."""
    grid = rng.integers(0, 256, (max(2, cells * HEIGHT // WIDTH), cells), dtype=np.uint8)
    soft = Image.fromarray(grid).resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BICUBIC)
    return low + (high - low) * np.asarray(soft, float) / 255.0


def background(colours: np.ndarray) -> Image.Image:
    """A canvas from [HEIGHT * SCALE, WIDTH * SCALE, 3] colours in 0..255."""
    return Image.fromarray(np.clip(colours + 0.5, 0, 255).astype(np.uint8), "RGB").convert("RGBA")


def layer() -> Image.Image:
    """An empty transparent canvas."""
    return Image.new("RGBA", (WIDTH * SCALE, HEIGHT * SCALE), (0, 0, 0, 0))


def blur(image: Image.Image, radius: float) -> Image.Image:
    """`image` blurred by `radius` finished pixels; without dark fringes at transparent parts."""
    pre = np.asarray(image, float)
    pre[..., :3] *= pre[..., 3:] / 255.0
    soft = Image.fromarray(np.round(pre).astype(np.uint8), "RGBA").filter(ImageFilter.GaussianBlur(radius * SCALE))
    out = np.asarray(soft, float)
    out[..., :3] = np.where(out[..., 3:] > 0, out[..., :3] * 255.0 / np.maximum(out[..., 3:], 1.0), 0.0)
    return Image.fromarray(np.clip(np.round(out), 0, 255).astype(np.uint8), "RGBA")


def mesh(image: Image.Image, points: np.ndarray, colours: np.ndarray, alpha: float = 1.0):
    """Fills a grid of quads. points: [rows, columns, 2]; colours: [rows - 1, columns - 1, 3] in 0..255."""
    target = image if alpha >= 1.0 else layer()
    draw = ImageDraw.Draw(target)
    scaled = points * SCALE
    shades = np.clip(np.round(colours), 0, 255).astype(int)
    for i in range(points.shape[0] - 1):
        for j in range(points.shape[1] - 1):
            quad = [tuple(scaled[i + di, j + dj]) for di, dj in ((0, 0), (0, 1), (1, 1), (1, 0))]
            draw.polygon(quad, fill=(*shades[i, j], 255), outline=(*shades[i, j], 255))
    if target is not image:
        target.putalpha(target.getchannel("A").point(lambda a: int(a * alpha)))
        image.alpha_composite(target)


def tube(image: Image.Image, path: np.ndarray, radii: np.ndarray, dark, light):
    """A round tube along `path` [n, 2] with `radii` [n], lit from above on its left side."""
    draw = ImageDraw.Draw(image)
    for part, shift, shade in ((1.0, 0.0, 0.0), (0.78, 0.14, 0.4), (0.5, 0.3, 0.75), (0.22, 0.42, 1.0)):
        fill = (*(int(c) for c in np.round(mix(dark, light, shade))), 255)
        for (x, y), radius in zip(path * SCALE, radii * SCALE, strict=True):
            x, y, r = x - radius * shift, y - radius * shift, radius * part
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def finish(image: Image.Image) -> Image.Image:
    """The finished RGB picture, WIDTH x HEIGHT."""
    return image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
