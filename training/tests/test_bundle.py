"""The committed bundle is whole and right, and writing one replaces nothing that is not a bundle."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import tomllib
from PIL import Image

from export_fish import DEFAULT_BUNDLE
from weir_export import bundle, graph
from weir_export.check import Model
from weir_export.head import LABELS
from weir_export.preprocess import load


def read(folder: Path) -> dict:
    return tomllib.loads((folder / "bundle.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def committed():
    return read(DEFAULT_BUNDLE)


def check_files(folder, manifest):
    for entry in (*manifest["variant"], *manifest["golden"]):
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], entry["file"]
    assert (folder / "labels.txt").read_text().split("\n") == [*manifest["labels"], ""]
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "ML Illustrated" in (folder / "NOTICE").read_text()


def test_committed_files_match_their_digests(committed):
    check_files(DEFAULT_BUNDLE, committed)
    assert [v["precision"] for v in committed["variant"]] == ["int8", "fp16"]
    assert committed["labels"] == list(LABELS)


def test_committed_texts_are_the_templates():
    for name in ("NOTICE", "README.md"):
        assert (DEFAULT_BUNDLE / name).read_text() == (bundle.TRAINING / "bundle_files" / name).read_text()


def test_models_have_the_inputs_and_outputs_that_the_manifest_names(committed):
    for variant in committed["variant"]:
        model = onnx.load(DEFAULT_BUNDLE / variant["file"])
        kinds = {"f32": onnx.TensorProto.FLOAT, "f16": onnx.TensorProto.FLOAT16}
        for value, side, kind in (
            (model.graph.input[0], "input", kinds[variant["input_type"]]),
            (model.graph.output[0], "output", kinds["f32"]),
        ):
            tensor = value.type.tensor_type
            assert value.name == committed[side]["name"] and tensor.elem_type == kind
            assert [d.dim_value for d in tensor.shape.dim] == committed[side]["shape"]


def test_golden_pictures_get_their_labels(committed):
    assert {golden["label"] for golden in committed["golden"]} == {"anemone_fish", "not_fish"}
    for variant in committed["variant"]:
        model = Model(DEFAULT_BUNDLE / variant["file"])
        for golden in committed["golden"]:
            row = model.scores([load(DEFAULT_BUNDLE / golden["file"])])[0]
            assert LABELS[row.argmax()] == golden["label"], (variant["file"], golden["file"])
            assert row.max() >= golden["min_score"] and row.sum() == pytest.approx(1, abs=1e-5)


def test_the_reference_is_the_share_of_each_label_in_training(committed):
    assert committed["reference"] == pytest.approx(bundle.REFERENCE)
    assert sum(bundle.REFERENCE.values()) == pytest.approx(1)


def test_golden_pictures_are_what_the_code_draws(committed):
    for name, draw, _, _ in bundle.GOLDEN:
        drawn, shipped = draw(), Image.open(DEFAULT_BUNDLE / "golden" / name)
        assert drawn.size == shipped.size == (640, 480) and drawn.tobytes() == draw.__wrapped__().tobytes()
        # JPEG at quality 90 loses a little of the grain.
        assert np.abs(np.asarray(drawn, float) - np.asarray(shipped, float)).mean() < 4


@pytest.fixture(scope="module")
def variants(network):
    return [bundle.fp32(graph.build(network))]


def test_fp32_bundle_is_whole_and_the_same_again(tmp_path, variants):
    for name in ("a", "b"):
        bundle.write(tmp_path / name, variants)
    manifest = read(tmp_path / "a")
    check_files(tmp_path / "a", manifest)
    assert [(v["precision"], v["devices"]) for v in manifest["variant"]] == [("fp32", ["cpu", "cuda", "tensorrt"])]
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_bundle_is_replaced_and_anything_else_is_not(tmp_path, variants):
    target = tmp_path / "1"
    target.mkdir()
    (target / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match="no bundle.toml"):
        bundle.write(target, variants)
    assert [p.name for p in target.iterdir()] == ["diary.txt"]
    (target / "bundle.toml").write_text("old")
    bundle.write(target, variants)
    assert read(target)["name"] == "fish" and not (target / "diary.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_failed_write_leaves_the_old_bundle(tmp_path, variants, monkeypatch):
    bundle.write(tmp_path / "1", variants)
    before = (tmp_path / "1" / "bundle.toml").read_bytes()

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(bundle, "manifest", full_disk)
    with pytest.raises(OSError):
        bundle.write(tmp_path / "1", variants)
    assert (tmp_path / "1" / "bundle.toml").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
