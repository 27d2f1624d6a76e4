"""Writes reference.txt: what Pillow makes of drawn pictures, for tests/preprocess_reference.rs.

Run: pip install pillow==13.0.0 && python make_reference.py
The pictures come from integer formulas that the Rust test repeats, so that no image file is needed.
"""

import pathlib

import PIL
from PIL import Image

MASK = 0xFFFFFFFF


def noise(x, y, channel):
    h = (x * 0x9E3779B1 ^ y * 0x85EBCA77 ^ channel * 0xC2B2AE3D) & MASK
    h ^= h >> 15
    h = h * 0x2C1B3C6D & MASK
    h ^= h >> 12
    return h & 0xFF


def gradient(x, y, channel, width, height):
    return ((x * 255) // max(width - 1, 1), (y * 255) // max(height - 1, 1), (x * 3 + y * 5) & 0xFF)[channel]


def edges(x, y, channel):
    return 255 * ((x // (3 + channel) + y // (5 - channel)) & 1)


def value(kind, x, y, channel, width, height):
    if kind == "noise":
        return noise(x, y, channel)
    if kind == "gradient":
        return gradient(x, y, channel, width, height)
    if kind == "edges":
        return edges(x, y, channel)
    if kind == "mixed":
        third = (x * 3) // width
        return value(("gradient", "noise", "edges")[third], x, y, channel, width, height)
    raise ValueError(kind)


def draw(kind, width, height):
    data = bytes(
        value(kind, x, y, c, width, height) for y in range(height) for x in range(width) for c in range(3)
    )
    return Image.frombytes("RGB", (width, height), data)


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(image, exif, resize, crop):
    if TURNS[exif] is not None:
        image = image.transpose(TURNS[exif])
    width, height = image.size
    short = min(width, height)
    size = tuple((2 * side * resize + short) // (2 * short) for side in (width, height))
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    # Resizing a strip to millions of pixels to keep a few is what the box is for: it is the part of the
    # source that the window shows, and the filter still reads beyond it.
    if max(size) > 20000:
        box = (left * width / size[0], top * height / size[1],
               (left + crop) * width / size[0], (top + crop) * height / size[1])
        return image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))


# kind, width, height, EXIF orientation, resize, crop, step between the pixels that are kept
CASES = [
    ("mixed", 640, 480, 1, 256, 224, 7),
    ("noise", 500, 375, 1, 256, 224, 7),
    ("edges", 333, 500, 1, 256, 224, 7),
    ("mixed", 960, 540, 1, 256, 224, 7),
    ("gradient", 256, 256, 1, 256, 224, 7),
    ("noise", 257, 391, 1, 256, 256, 8),
    ("noise", 97, 61, 1, 36, 32, 1),
    ("edges", 1000, 701, 1, 36, 32, 1),
    ("mixed", 20, 31, 1, 36, 32, 1),
    ("noise", 5, 3, 1, 37, 32, 1),
    ("noise", 1, 1, 1, 36, 32, 1),
    ("noise", 1, 2000, 1, 36, 32, 1),
    ("noise", 2000, 1, 1, 36, 32, 1),
    ("edges", 3, 4001, 1, 36, 31, 1),
    ("noise", 36, 36, 1, 36, 36, 1),
    ("edges", 72, 144, 1, 36, 32, 1),
] + [("noise", 101, 74, exif, 41, 32, 1) for exif in range(1, 9)] \
  + [("mixed", 55, 120, exif, 38, 31, 1) for exif in range(1, 9)]


def main():
    lines = [f"# Written by make_reference.py with Pillow {PIL.__version__}: a line of parameters, then RGB rows in hex."]
    for kind, width, height, exif, resize, crop, step in CASES:
        image = preprocess(draw(kind, width, height), exif, resize, crop)
        lines.append(f"{kind} {width} {height} {exif} {resize} {crop} {step}")
        for y in range(0, crop, step):
            lines.append("".join("%02x%02x%02x" % image.getpixel((x, y)) for x in range(0, crop, step)))
    path = pathlib.Path(__file__).with_name("reference.txt")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
