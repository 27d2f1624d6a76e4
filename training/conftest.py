"""Lets the tests import the modules beside this file, and gives them a network with random weights."""

import numpy as np
import pytest

from weir_export import efficientnet_lite


def random_state(seed=5) -> dict:
    """A state dict of the right names and shapes, with weights that give activations a realistic range."""
    rng, state = np.random.default_rng(seed), {}

    def conv(name, norm, out, inner, kernel):
        spread = np.sqrt(2.0 / (inner * kernel * kernel))
        state[f"{name}.weight"] = rng.normal(0, spread, (out, inner, kernel, kernel)).astype(np.float32)
        state[f"{norm}.weight"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
        state[f"{norm}.bias"] = rng.normal(0.3, 0.3, out).astype(np.float32)
        state[f"{norm}.running_mean"] = rng.normal(0, 0.2, out).astype(np.float32)
        state[f"{norm}.running_var"] = rng.uniform(0.3, 1.5, out).astype(np.float32)
        state[f"{norm}.num_batches_tracked"] = np.array(1, np.int64)

    conv("_conv_stem", "_bn0", 32, 3, 3)
    channels, index = 32, 0
    for repeats, kernel, _, expansion, out in efficientnet_lite.STAGES:
        for _ in range(repeats):
            block, wide = f"_blocks.{index}", channels * expansion
            if expansion != 1:
                conv(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1)
            conv(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel)
            conv(f"{block}._project_conv", f"{block}._bn2", out, wide, 1)
            channels, index = out, index + 1
    conv("_conv_head", "_bn1", 1280, channels, 1)
    state["_fc.weight"] = rng.normal(0, 0.009, (1000, 1280)).astype(np.float32)
    state["_fc.bias"] = rng.normal(0, 0.1, 1000).astype(np.float32)
    return state


@pytest.fixture(scope="session")
def state():
    """The random state dict, shared: do not change it."""
    return random_state()


@pytest.fixture(scope="session")
def network(state):
    """The network with those weights."""
    return efficientnet_lite.network(state)
