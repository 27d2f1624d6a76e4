"""What goes in: preprocessing, calibration pictures, pinned wheels; and the judgement of what comes out."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

import check_fish
from weir_export import calibration, check, packages, variants
from weir_export.head import LABELS
from weir_export.preprocess import load, preprocess, resized_size


@pytest.mark.parametrize(
    "size, resized",
    [((640, 480), (341, 256)), ((480, 640), (256, 341)), ((256, 256), (256, 256)), ((1920, 1080), (455, 256)),
     ((512, 515), (256, 258)), ((512, 513), (256, 257)), ((3, 2), (384, 256))],
)  # fmt: skip
def test_resized_size_rounds_to_nearest(size, resized):
    assert resized_size(*size) == resized


def test_preprocess_crops_the_middle_and_normalises():
    pixels = np.zeros((256, 341, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = np.arange(341) % 256, 255
    x = preprocess(Image.fromarray(pixels))
    assert x.shape == (1, 3, 224, 224) and x.dtype == np.float32
    # (341 - 224) // 2 = 58
    assert x[0, 0, 0, 0] == (58 - 127) / 128 and x[0, 1].max() == -127 / 128 and x[0, 2].min() == 1.0


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((400, 300, 3), np.uint8)
    pixels[:200] = 255
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x = load(tmp_path / "a.png")
    assert x[0, 0, 0, 0] == -127 / 128 and x[0, 0, -1, 0] == 1.0


def test_calibration_variations_are_fixed_and_normalised():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    first, second = (calibration._variations(picture, np.random.default_rng(1)) for _ in range(2))
    assert len(first) == len(calibration.CASTS) and all(
        np.array_equal(a, b) for a, b in zip(first, second, strict=True)
    )
    for x in first:
        assert x.shape == (1, 3, 224, 224) and x.min() >= -127 / 128 and x.max() <= 1.0
        assert np.array_equal(x * 128, np.round(x * 128))


def test_calibration_from_a_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        calibration.from_folder(tmp_path)
    Image.new("RGB", (300, 400)).save(tmp_path / "a.JPG", "JPEG")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [x.shape for x in calibration.from_folder(tmp_path)] == [(1, 3, 224, 224)]


def test_a_wheel_with_another_digest_is_refused(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"other")
    wheel = packages.Wheel("x", "1", "x.whl", "0" * 64)
    with pytest.raises(packages.PackageError, match="sha256"):
        packages.fetch(wheel, tmp_path)
    right = dataclasses.replace(wheel, sha256=hashlib.sha256(b"other").hexdigest())
    assert packages.fetch(right, tmp_path) == tmp_path / "x.whl"


def scores(*labels):
    return np.eye(len(LABELS), dtype=np.float32)[[LABELS.index(label) for label in labels]]


def test_accuracy_and_agreement():
    truth = np.array([LABELS.index(label) for label in ("gar", "eel", "not_fish", "not_fish")])
    a, b = scores("gar", "not_fish", "eel", "not_fish"), scores("gar", "eel", "eel", "not_fish")
    assert check.accuracy(a, truth) == {"fish": 2, "fish_right": 1, "others": 2, "others_called_fish": 1}
    assert check.agreement(a, b) == {"same_top": 3, "of": 4, "largest_difference": 1.0, "mean_difference": 0.25}


def test_the_limits_of_the_check():
    right = {"fish": 16, "fish_right": 14, "others": 24, "others_called_fish": 1}
    same = {"same_top": 38, "of": 40}
    assert check_fish.judge("int8", right, same) == []
    worse = {**right, "fish_right": 13, "others_called_fish": 2}
    assert len(check_fish.judge("int8", worse, {"same_top": 37, "of": 40})) == 3


def test_a_variant_that_strays_is_refused():
    near = {"same_top": 90, "of": 90, "largest_difference": 0.05, "mean_difference": 0.02}
    variants._check_agreement("int8", near)
    for bad in ({"same_top": 80}, {"largest_difference": 0.4}, {"mean_difference": 0.1}):
        with pytest.raises(ValueError, match="strays"):
            variants._check_agreement("int8", {**near, **bad})
    good = scores("anemone_fish", "not_fish")
    variants._check_golden("int8", good)
    with pytest.raises(ValueError, match="sea_floor"):
        variants._check_golden("int8", scores("anemone_fish", "puffer"))
