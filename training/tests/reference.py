"""The network once more, in plain numpy and layer by layer as published: BatchNorm apart, no folding, padding
found by writing the padded picture out. It shares no code with the export."""

import numpy as np


def conv(x, weight, stride, groups):
    kernel, (channels, height, width) = weight.shape[-1], x.shape
    out_h, out_w = int(np.ceil(height / stride)), int(np.ceil(width / stride))
    need_h = max((out_h - 1) * stride + kernel, height)
    need_w = max((out_w - 1) * stride + kernel, width)
    padded = np.zeros((channels, need_h, need_w))
    top, left = (need_h - height) // 2, (need_w - width) // 2
    padded[:, top : top + height, left : left + width] = x
    out = np.zeros((weight.shape[0], out_h, out_w))
    for i in range(kernel):
        for j in range(kernel):
            part = padded[:, i : i + stride * (out_h - 1) + 1 : stride, j : j + stride * (out_w - 1) + 1 : stride]
            if groups == 1:
                out += np.tensordot(weight[:, :, i, j], part, 1)
            else:
                out += weight[:, 0, i, j][:, None, None] * part
    return out


def layer(state, x, name, norm, stride=1, groups=1, relu6=True):
    x = conv(x, state[f"{name}.weight"].astype(float), stride, groups)
    mean, var, gamma, beta = (
        state[f"{norm}.{part}"].astype(float)[:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    x = (x - mean) / np.sqrt(var + 0.001) * gamma + beta
    return np.minimum(np.maximum(x, 0), 6) if relu6 else x


def probabilities(state, image):
    """[1000] for one [3, S, S] picture."""
    x = layer(state, image.astype(float), "_conv_stem", "_bn0", stride=2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        start, name = x, f"_blocks.{i}"
        if i > 0:
            x = layer(state, x, f"{name}._expand_conv", f"{name}._bn0")
        x = layer(state, x, f"{name}._depthwise_conv", f"{name}._bn1", stride, x.shape[0])
        x = layer(state, x, f"{name}._project_conv", f"{name}._bn2", relu6=False)
        if stride == 1 and start.shape == x.shape:
            x = x + start
    x = layer(state, x, "_conv_head", "_bn1").mean((1, 2))
    logits = state["_fc.weight"].astype(float) @ x + state["_fc.bias"]
    e = np.exp(logits - logits.max())
    return e / e.sum()
