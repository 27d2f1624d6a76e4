"""Writes the network as an ONNX graph in f32 or f16. Input `image` [N,3,S,S], output `scores` [N,17] f32."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .efficientnet_lite import Conv, Network, same_padding
from .head import FISH, LABELS, fish_first

OPSET = 17
IR_VERSION = 8
INPUT, OUTPUT = "image", "scores"


class _Graph:
    """Builds nodes and initializers; every method returns the name of the tensor it adds."""

    def __init__(self, dtype):
        self.dtype, self.nodes, self.initializers = np.dtype(dtype), [], []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op, inputs, output, **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{outputs[0]}/{op}", **attributes))
        return output

    def conv(self, x, size, conv: Conv):
        kernel = conv.weight.shape[-1]
        before, after = same_padding(size, kernel, conv.stride)
        weight = self.constant(f"{conv.name}.weight", conv.weight.astype(self.dtype))
        bias = self.constant(f"{conv.name}.bias", conv.bias.astype(self.dtype))
        x = self.node(
            "Conv", [x, weight, bias], conv.name,
            kernel_shape=[kernel, kernel], strides=[conv.stride] * 2,
            pads=[before, before, after, after], group=conv.groups,
        )  # fmt: skip
        if conv.relu6:
            x = self.node("Clip", [x, "zero", "six"], f"{conv.name}.relu6")
        return x, -(-size // conv.stride)


def build(network: Network, size: int = 224, dtype=np.float32) -> onnx.ModelProto:
    """The model for `size` x `size` pixels, already normalised. With f16, everything after the last layer is f32, so that
    the scores sum to 1."""
    graph = _Graph(dtype)
    graph.constant("zero", np.zeros((), graph.dtype))
    graph.constant("six", np.full((), 6, graph.dtype))
    x, side = INPUT, size
    for block in network.blocks:
        start = x
        for conv in block.convs:
            x, side = graph.conv(x, side, conv)
        if block.residual:
            x = graph.node("Add", [x, start], f"{block.convs[-1].name}.sum")
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "features", axis=1)
    _head(graph, x, network)
    return _model(graph, size)


def _head(graph: _Graph, features, network: Network):
    """Scores: the softmax over the fish logits and the largest other logit. Its top label is therefore the top
    of the 1000 classes, and its scores are higher than those of the softmax over all 1000."""
    weight, bias = fish_first(network.linear_weight, network.linear_bias)
    weight = graph.constant("linear.weight", weight.astype(graph.dtype))
    bias = graph.constant("linear.bias", bias.astype(graph.dtype))
    logits = graph.node("Gemm", [features, weight, bias], "logits", transB=1)
    if graph.dtype != np.float32:
        logits = graph.node("Cast", [logits], "logits_f32", to=TensorProto.FLOAT)
    sizes = graph.constant("head_sizes", np.array([len(FISH), len(network.linear_bias) - len(FISH)], np.int64))
    fish, rest = graph.node("Split", [logits, sizes], ["fish", "rest"], axis=1)
    not_fish = graph.node("ReduceMax", [rest], "not_fish", axes=[1], keepdims=1)
    competing = graph.node("Concat", [fish, not_fish], "competing", axis=1)
    graph.node("Softmax", [competing], OUTPUT, axis=1)


def _model(graph: _Graph, size: int) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(graph.dtype)
    image = helper.make_tensor_value_info(INPUT, kind, ["N", 3, size, size])
    scores = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(LABELS)])
    body = helper.make_graph(graph.nodes, "efficientnet_lite0_fish", [image], [scores], graph.initializers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="weir")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model
