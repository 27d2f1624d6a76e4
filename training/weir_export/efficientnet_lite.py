"""EfficientNet-Lite0 as a list of convolutions, with BatchNorm folded into their weights.

The network is EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6 in place of
swish. Padding is TensorFlow's "same", which is asymmetric where the stride is 2.
"""

from dataclasses import dataclass

import numpy as np

BATCH_NORM_EPSILON = 1e-3
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000
# (repeats, kernel, stride of the first, expansion, output channels)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Conv:
    """One convolution. weight: [out, in / groups, k, k] f32; bias: [out] f32; relu6: clip to 0..6."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    stride: int
    groups: int
    relu6: bool


@dataclass(frozen=True)
class Block:
    """Convolutions in a row; `residual` adds the block's input to its output."""

    convs: tuple
    residual: bool


@dataclass(frozen=True)
class Network:
    """Blocks in order, then global average pooling, then `linear_weight` [1000, 1280] and its bias."""

    blocks: tuple
    linear_weight: np.ndarray
    linear_bias: np.ndarray


def same_padding(size: int, kernel: int, stride: int) -> tuple:
    """(before, after) padding of TensorFlow's "same", so that the output is ceil(size / stride)."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def fold_batch_norm(weight, gamma, beta, mean, variance, epsilon=BATCH_NORM_EPSILON):
    """(weight, bias) f32 of the convolution that equals `weight` followed by BatchNorm."""
    gain = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    folded = weight.astype(np.float64) * gain[:, None, None, None]
    bias = beta.astype(np.float64) - mean.astype(np.float64) * gain
    return folded.astype(np.float32), bias.astype(np.float32)


class _Reader:
    """Takes tensors from the state dict by name, checks their shapes, and records which were used."""

    def __init__(self, state):
        self.state, self.used = state, set()

    def take(self, name, shape):
        if name not in self.state:
            raise ValueError(f"the weights have no tensor {name}")
        if self.state[name].shape != shape:
            raise ValueError(f"{name} has shape {self.state[name].shape}, expected {shape}")
        self.used.add(name)
        return self.state[name]

    def conv(self, conv, norm, shape, stride=1, groups=1, relu6=True):
        weight = self.take(f"{conv}.weight", shape)
        parts = [self.take(f"{norm}.{p}", shape[:1]) for p in ("weight", "bias", "running_mean", "running_var")]
        return Conv(conv, *fold_batch_norm(weight, *parts), stride, groups, relu6)

    def finish(self):
        left = [n for n in self.state if n not in self.used and not n.endswith(".num_batches_tracked")]
        if left:
            raise ValueError(f"the weights hold tensors that the network does not have: {left[:5]}")


def network(state: dict) -> Network:
    """The network from a state dict (name -> array). Raises ValueError on a missing or unexpected tensor."""
    read = _Reader(state)
    stem = read.conv("_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3), stride=2)
    blocks, channels = [Block((stem,), residual=False)], STEM_CHANNELS
    for repeats, kernel, first_stride, expansion, out in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            prefix, wide, convs = f"_blocks.{len(blocks) - 1}", channels * expansion, []
            if expansion != 1:
                convs.append(read.conv(f"{prefix}._expand_conv", f"{prefix}._bn0", (wide, channels, 1, 1)))
            convs.append(
                read.conv(f"{prefix}._depthwise_conv", f"{prefix}._bn1", (wide, 1, kernel, kernel), stride, wide)
            )
            convs.append(read.conv(f"{prefix}._project_conv", f"{prefix}._bn2", (out, wide, 1, 1), relu6=False))
            blocks.append(Block(tuple(convs), residual=stride == 1 and channels == out))
            channels = out
    head = read.conv("_conv_head", "_bn1", (HEAD_CHANNELS, channels, 1, 1))
    blocks.append(Block((head,), residual=False))
    linear = read.take("_fc.weight", (CLASSES, HEAD_CHANNELS)), read.take("_fc.bias", (CLASSES,))
    read.finish()
    return Network(tuple(blocks), *linear)
