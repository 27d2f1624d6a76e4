"""Writes a bundle directory: bundle.toml, labels, models, golden pictures, licence. Written atomically."""

import io
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from PIL import Image

from .graph import INPUT, OUTPUT
from .head import LABELS
from .packages import sha256_of
from .picture import scenes
from .preprocess import CROP, MEAN, RESIZE, STD

TRAINING = Path(__file__).resolve().parents[1]
DESCRIPTION = "Sixteen fish of ImageNet and not_fish; EfficientNet-Lite0"
JPEG = {"quality": 90, "subsampling": 0, "optimize": True}
# Share of each label in the training pictures of the network: ImageNet's 1000 classes have about the same size
# there, 732 to 1300 pictures each (Russakovsky et al. 2015, table 2).
CLASSES = 1000
REFERENCE = {label: 1 / CLASSES for label in LABELS[:-1]} | {LABELS[-1]: (CLASSES - len(LABELS) + 1) / CLASSES}
# (file, scene, label, least score). The lowest measured scores of all variants are 0.94 and 0.97; the margin is for other
# processors and other calibration pictures.
GOLDEN = (
    ("anemone_fish.jpg", scenes.anemone_fish, "anemone_fish", 0.8),
    ("sea_floor.jpg", scenes.sea_floor, "not_fish", 0.9),
)


@dataclass(frozen=True)
class Variant:
    """One model file and where it may run."""

    file: str
    precision: str
    input_type: str
    devices: tuple
    model: onnx.ModelProto


def fp32(model):
    """The variant that is not committed: for benches and for comparison."""
    return Variant("model.onnx", "fp32", "f32", ("cpu", "cuda", "tensorrt"), model)


def fp16(model):
    """The variant for GPUs."""
    return Variant("model.fp16.onnx", "fp16", "f16", ("cuda", "tensorrt"), model)


def int8(model):
    """The variant for CPUs."""
    return Variant("model.int8.onnx", "int8", "f32", ("cpu",), model)


def _toml(value) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)


def _table(header: str, **entries) -> str:
    return "\n".join([header] * bool(header) + [f"{key} = {_toml(value)}" for key, value in entries.items()])


def manifest(variants, folder: Path) -> str:
    """The text of bundle.toml for the files in `folder`."""
    top = _table("", format=1, name="fish", version="1", description=DESCRIPTION, license="Apache-2.0", labels=LABELS)
    parts = [
        top,
        _table("[input]", name=INPUT, shape=[0, 3, CROP, CROP]),
        _table("[output]", name=OUTPUT, shape=[0, len(LABELS)]),
        _table("[preprocess]", resize=RESIZE, crop=CROP, mean=[MEAN] * 3, std=[STD] * 3),
    ]
    for v in variants:
        digest = sha256_of(folder / v.file)
        parts.append(
            _table(
                "[[variant]]", file=v.file, precision=v.precision, input_type=v.input_type, devices=v.devices,
                sha256=digest,
            )
        )  # fmt: skip
    for name, _, label, least in GOLDEN:
        file = f"golden/{name}"
        digest = sha256_of(folder / file)
        parts.append(_table("[[golden]]", file=file, sha256=digest, label=label, min_score=least))
    parts.append(_table("[reference]", **REFERENCE))
    return "\n\n".join(parts) + "\n"


def jpeg(picture: Image.Image) -> bytes:
    """The picture as the bytes of a JPEG."""
    out = io.BytesIO()
    picture.save(out, "JPEG", **JPEG)
    return out.getvalue()


def _fill(folder: Path, variants):
    (folder / "golden").mkdir()
    for name, draw, _, _ in GOLDEN:
        (folder / "golden" / name).write_bytes(jpeg(draw()))
    for v in variants:
        (folder / v.file).write_bytes(v.model.SerializeToString(deterministic=True))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    (folder / "bundle.toml").write_text(manifest(variants, folder), encoding="utf-8")
    shutil.copyfile(TRAINING.parent / "LICENSE", folder / "LICENSE")
    for name in ("NOTICE", "README.md"):
        shutil.copyfile(TRAINING / "bundle_files" / name, folder / name)


def write(target: Path, variants):
    """Writes the bundle to `target`, replacing an existing bundle. Any other non-empty directory
    is refused with ValueError. `target` never contains an incomplete bundle."""
    target = Path(target)
    if target.exists() and any(target.iterdir()) and not (target / "bundle.toml").is_file():
        raise ValueError(f"{target} is not empty and holds no bundle.toml; refusing to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=target.parent) as work:
        fresh = Path(work) / "new"
        fresh.mkdir()
        _fill(fresh, variants)
        if target.exists():
            target.rename(Path(work) / "old")
        fresh.rename(target)
