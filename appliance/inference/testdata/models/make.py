#!/usr/bin/env python3
"""Makes the tiny models and pictures of the tests: a classifier that says which of red, green and blue prevails.

Needs onnx, numpy and Pillow; what it makes is committed, so tests need none of them.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HERE = Path(__file__).parent
MOODY = {
    "bound": np.array([[9, 9, 0.5]], np.float32),
    "axis": np.array([1], np.int64),
    "nothing": np.zeros((1, 1), np.float32),
}


def model(side=8, labels=3, kind=TensorProto.FLOAT, broken=False, moody=False, logits=False):
    """Mean of each channel -> one row per label -> softmax; `broken` takes the logarithm of a negative number, `moody` does
    so for what is blue, `logits` leaves the softmax out."""
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weights = np.zeros((3, labels), dtype)
    weights[: min(3, labels), : min(3, labels)] = 4 * np.eye(min(3, labels), dtype=dtype)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["scores" if logits else "logits"]),
        helper.make_node("Softmax", ["logits"], ["likely" if broken or moody else "scores"], axis=1),
    ]
    if logits:
        nodes.pop()
    if moody:
        # Blue is 0.65 in a picture that is blue and -0.91 in one that is red, and the root of less than 0 is no number.
        nodes += [
            helper.make_node("Sub", ["bound", "mean"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["root"]),
            helper.make_node("ReduceSum", ["root", "axis"], ["sum"], keepdims=1),
            helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
            helper.make_node("Add", ["likely", "zero"], ["scores"]),
        ]
    if broken:
        nodes += [
            helper.make_node("Neg", ["likely"], ["negative"]),
            helper.make_node("Log", ["negative"], ["scores"]),
        ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", kind, ["n", 3, side, side])],
        [helper.make_tensor_value_info("scores", kind, ["n", labels])],
        [numpy_helper.from_array(weights, "weights")]
        + [numpy_helper.from_array(array, name) for name, array in (MOODY if moody else {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


onnx.save(model(), HERE / "colours.onnx")
onnx.save(model(side=16), HERE / "side16.onnx")
onnx.save(model(labels=2), HERE / "two_labels.onnx")
onnx.save(model(kind=TensorProto.FLOAT16), HERE / "fp16.onnx")
onnx.save(model(broken=True), HERE / "nan.onnx")
onnx.save(model(moody=True), HERE / "moody.onnx")
onnx.save(model(logits=True), HERE / "logits.onnx")
(HERE / "weights.data").unlink(missing_ok=True)
onnx.save(model(), HERE / "external.onnx", save_as_external_data=True, location="weights.data", size_threshold=0)
for name, colour in [("red", (220, 10, 10)), ("blue", (10, 10, 220))]:
    Image.new("RGB", (8, 8), colour).save(HERE / f"{name}.png")
