"""Turns the fp32 model into int8: static QDQ, U8 activations, S8 weights with one scale per channel.

Where a Clip feeds a quantized tensor the range of that tensor does its work (ONNX Runtime's quantizer takes
the node out), so that every convolution becomes one integer kernel.
"""

import contextlib
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from .graph import INPUT, IR_VERSION
from .preprocess import MEAN, STD

# Everything after the logits stays in f32: 8 bits are too coarse for logits and for scores.
QUANTIZED_OPS = ["Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"]


class _Reader(CalibrationDataReader):
    def __init__(self, inputs):
        self.inputs = iter(inputs)

    def get_next(self):
        x = next(self.inputs, None)
        return None if x is None else {INPUT: x}


@contextlib.contextmanager
def _quiet():
    """Suppresses the quantizer's advice to fold constants first: this graph has none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def quantize(model: onnx.ModelProto, inputs: list, reduce_range: bool = False) -> onnx.ModelProto:
    """The int8 model, its ranges taken over `inputs` ([1, 3, S, S] f32 each). `reduce_range` keeps weights to
    7 bits, for processors whose 8-bit products saturate (AVX2 and AVX-512 without VNNI)."""
    # (x - 127) / 128 with x a byte: this scale and zero point represent x without loss.
    exact_input = {"scale": np.array(1 / STD, np.float32), "zero_point": np.array(MEAN, np.uint8)}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        with _quiet():
            quantize_static(
                source,
                target,
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=QUANTIZED_OPS,
                extra_options={
                    "TensorQuantOverrides": {INPUT: [exact_input]},
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],
                },
            )
        quantized = onnx.load(target)
    quantized.ir_version = IR_VERSION
    # The quantizer puts its own name and version here.
    quantized.producer_name, quantized.producer_version = model.producer_name, ""
    onnx.checker.check_model(quantized, full_check=True)
    return quantized
