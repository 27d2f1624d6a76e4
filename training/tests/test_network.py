"""The network and its graph: layer arithmetic on tiny cases, and the whole against plain numpy."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import reference

from weir_export import efficientnet_lite, graph, head, quantize
from weir_export.check import Model


@pytest.mark.parametrize(
    "size, kernel, stride, padding",
    [
        (224, 3, 2, (0, 1)),
        (56, 5, 2, (1, 2)),
        (14, 5, 1, (2, 2)),
        (7, 3, 2, (1, 1)),
        (8, 1, 1, (0, 0)),
        (1, 3, 2, (1, 1)),
    ],
)
def test_same_padding(size, kernel, stride, padding):
    assert efficientnet_lite.same_padding(size, kernel, stride) == padding


def test_folding_batch_norm_by_hand():
    norm = [np.array([x], np.float32) for x in (2, 5, 7, 15.999)]
    weight, bias = efficientnet_lite.fold_batch_norm(np.full((1, 1, 1, 1), 3, np.float32), *norm)
    # (3 x - 7) / 4 * 2 + 5
    assert weight.item() == pytest.approx(1.5) and bias.item() == pytest.approx(1.5)


def test_rows_of_the_last_layer():
    weight, bias = head.fish_first(np.arange(1000)[:, None], np.arange(1000))
    assert list(bias[:16]) == [0, 1, 2, 3, 4, 5, 6, *range(389, 398)]
    assert sorted(bias) == list(range(1000)) and list(weight[:, 0]) == list(bias)
    assert len(head.LABELS) == len(set(head.LABELS)) == 17 and head.LABELS[-1] == "not_fish"


def test_the_network_has_the_parts_of_lite0(network):
    convs = [conv for block in network.blocks for conv in block.convs]
    assert len(network.blocks) == 18 and len(convs) == 49
    assert sum(block.residual for block in network.blocks) == 9
    assert sum(not conv.relu6 for conv in convs) == 16


def test_missing_odd_and_surplus_tensors_are_named(state):
    short = {k: v for k, v in state.items() if k != "_blocks.3._bn1.bias"}
    with pytest.raises(ValueError, match="_blocks.3._bn1.bias"):
        efficientnet_lite.network(short)
    with pytest.raises(ValueError, match=r"_fc.bias has shape \(10,\)"):
        efficientnet_lite.network(state | {"_fc.bias": np.zeros(10, np.float32)})
    with pytest.raises(ValueError, match="_blocks.0._se_reduce.weight"):
        efficientnet_lite.network(state | {"_blocks.0._se_reduce.weight": np.zeros(1)})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(2)
    return [((rng.integers(0, 256, (1, 3, 48, 48)) - 127) / 128).astype(np.float32) for _ in range(6)]


@pytest.fixture(scope="module")
def expected(state, pictures):
    rows = []
    for x in pictures:
        p = reference.probabilities(state, x[0])
        competing = np.array([*p[list(head.FISH)], np.delete(p, list(head.FISH)).max()])
        rows.append(competing / competing.sum())
    return np.array(rows)


def test_fp32_graph_equals_plain_numpy(network, pictures, expected):
    found = Model(graph.build(network, 48).SerializeToString()).scores(pictures)
    # Sizes 24, 12, 6, 3, 2 inside: odd ones too. The expected scores must differ enough to tell.
    assert np.ptp(expected, 0).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "top, label",
    [
        (0, "tench"),
        (6, "stingray"),
        (7, "not_fish"),
        (388, "not_fish"),
        (389, "barracouta"),
        (396, "lionfish"),
        (398, "not_fish"),
        (999, "not_fish"),
    ],
)
def test_the_likeliest_class_wins_though_the_others_together_weigh_more(network, pictures, top, label, dtype):
    bias = np.zeros(1000, np.float32)
    bias[top] = 2
    flat = dataclasses.replace(network, linear_weight=np.zeros_like(network.linear_weight), linear_bias=bias)
    row = Model(graph.build(flat, 48, dtype).SerializeToString()).scores(pictures[:1])[0]
    wanted = np.exp([2.0 * (name == label) for name in head.LABELS])
    np.testing.assert_allclose(row, wanted / wanted.sum(), atol=1e-6)


def test_a_batch_is_its_pictures(network, pictures):
    session = onnxruntime.InferenceSession(graph.build(network, 48).SerializeToString())
    batch = session.run(None, {"image": np.concatenate(pictures)})[0]
    alone = Model(graph.build(network, 48).SerializeToString()).scores(pictures)
    np.testing.assert_allclose(batch, alone, atol=1e-5)
    np.testing.assert_allclose(batch.sum(1), 1, atol=1e-5)


def test_fp16_graph_is_near_and_takes_f16(network, pictures, expected):
    model = graph.build(network, 48, np.float16)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    found = Model(model.SerializeToString()).scores(pictures)
    np.testing.assert_allclose(found, expected, atol=0.01)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("reduce_range, largest, tolerance", [(False, 127, 0.1), (True, 63, 0.12)])
def test_int8_graph(network, pictures, expected, reduce_range, largest, tolerance):
    model = quantize.quantize(graph.build(network, 48), pictures, reduce_range)
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    ops = [node.op_type for node in model.graph.node]
    assert "Clip" not in ops and ops.count("Conv") == 49
    assert constants["image_scale"] == 1 / 128 and constants["image_zero_point"] == 127
    weights = [w for w in constants.values() if w.dtype == np.int8 and w.ndim == 4]
    # ONNX Runtime's 7-bit range is -64..64.
    assert len(weights) == 49 and max(int(np.abs(w.astype(int)).max()) for w in weights) in (largest, largest + 1)
    found = Model(model.SerializeToString()).scores(pictures)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_the_graph_is_the_same_bytes_again(network):
    first, second = (graph.build(network, 48).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
