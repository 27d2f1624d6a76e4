#!/usr/bin/env python3
"""Measures the bundle's models on labelled photographs and against the fp32 model. See training/README.md."""

import argparse
import sys
from pathlib import Path

import tomllib

from export_fish import DEFAULT_BUNDLE, read_network
from weir_export import check, graph, packages

LEAST_FISH_RIGHT, MOST_OTHERS_CALLED_FISH, LEAST_AGREEMENT = 14 / 16, 1 / 24, 38 / 40


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs with labels.csv")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, metavar="DIR", help="default: models/fish/1")
    parser.add_argument("--time", action="store_true", help="measure the time to create a session and to run it")
    parser.add_argument("--cache", type=Path, default=packages.default_cache(), metavar="DIR", help="for downloads")
    return parser.parse_args()


def models(options) -> dict:
    """precision -> model bytes: fp32 from the weights, the rest from the bundle."""
    found = {"fp32": graph.build(read_network(options.cache)).SerializeToString()}
    manifest = tomllib.loads((options.bundle / "bundle.toml").read_text(encoding="utf-8"))
    return found | {v["precision"]: (options.bundle / v["file"]).read_bytes() for v in manifest["variant"]}


def judge(name, right, same) -> list:
    """Descriptions of the limits that this model misses."""
    missed = []
    if right["fish_right"] < LEAST_FISH_RIGHT * right["fish"]:
        missed.append(f"{name}: {right['fish_right']} of {right['fish']} fish right")
    if right["others_called_fish"] > MOST_OTHERS_CALLED_FISH * right["others"]:
        missed.append(f"{name}: {right['others_called_fish']} of {right['others']} others called a fish")
    if same["same_top"] < LEAST_AGREEMENT * same["of"]:
        missed.append(f"{name}: agrees with fp32 on {same['same_top']} of {same['of']}")
    return missed


def print_times(data: bytes, x):
    """One line of timings of a model on one thread."""
    middle, least = check.inference_ms(check.Model(data), x)
    levels = ", ".join(f"{level} {check.creation_ms(data, level):.0f}" for level in check.LEVELS)
    print(f"      one image {middle:.2f} ms (least {least:.2f}); session made in ms: {levels}")


def main():
    options = arguments()
    inputs, truth = check.labelled(options.photos)
    missed, reference = [], None
    for name, data in models(options).items():
        scores = check.Model(data).scores(inputs)
        reference = scores if reference is None else reference
        right, same = check.accuracy(scores, truth), check.agreement(reference, scores)
        print(
            f"{name}: {right['fish_right']} of {right['fish']} fish right,"
            f" {right['others_called_fish']} of {right['others']} others called a fish,"
            f" top label as fp32 on {same['same_top']} of {same['of']},"
            f" largest difference {same['largest_difference']:.4f}"
        )
        missed += judge(name, right, same)
        if options.time:
            print_times(data, inputs[0])
    if missed:
        sys.exit("outside the limits: " + "; ".join(missed))


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
