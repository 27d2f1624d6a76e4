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


def model(side=8, labels=3, kind=TensorProto.FLOAT, broken=False):
    """Mean of each channel -> one row a label -> softmax; `broken` takes the logarithm of a negative number."""
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weights = np.zeros((3, labels), dtype)
    weights[: min(3, labels), : min(3, labels)] = 4 * np.eye(min(3, labels), dtype=dtype)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["likely" if broken else "scores"], axis=1),
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
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


onnx.save(model(), HERE / "colours.onnx")
onnx.save(model(side=16), HERE / "side16.onnx")
onnx.save(model(labels=2), HERE / "two_labels.onnx")
onnx.save(model(kind=TensorProto.FLOAT16), HERE / "fp16.onnx")
onnx.save(model(broken=True), HERE / "nan.onnx")
(HERE / "weights.data").unlink(missing_ok=True)
onnx.save(model(), HERE / "external.onnx", save_as_external_data=True, location="weights.data", size_threshold=0)
for name, colour in [("red", (220, 10, 10)), ("blue", (10, 10, 220))]:
    Image.new("RGB", (8, 8), colour).save(HERE / f"{name}.png")
