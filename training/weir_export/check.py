"""Measures models: that variants agree, and how many labelled photographs each gets right."""

import csv
import time
from pathlib import Path

import numpy as np
import onnxruntime

from .graph import INPUT
from .head import LABELS, NOT_FISH
from .preprocess import load

LEVELS = {
    name: getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}")
    for name in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
}


class Model:
    """A model on one CPU thread, as a lane of the appliance runs it."""

    def __init__(self, model, level: str = "ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = LEVELS[level]
        # Suppresses the warning that the CPU computes fp16 in fp32.
        options.log_severity_level = 3
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        half = self.session.get_inputs()[0].type == "tensor(float16)"
        self.dtype = np.float16 if half else np.float32

    def scores(self, inputs) -> np.ndarray:
        """[n, labels] f32 for n inputs of [1, 3, S, S], one at a time."""
        return np.concatenate([self.session.run(None, {INPUT: x.astype(self.dtype)})[0] for x in inputs])


def labelled(folder: Path):
    """(inputs, label indices) of a folder with labels.csv (columns file, label). Raises ValueError."""
    with open(Path(folder) / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    unknown = {row["label"] for row in rows} - set(LABELS)
    if unknown or not rows:
        raise ValueError(f"{folder}/labels.csv is empty or has unknown labels: {sorted(unknown)}")
    return [load(Path(folder) / row["file"]) for row in rows], np.array([LABELS.index(row["label"]) for row in rows])


def accuracy(scores: np.ndarray, truth: np.ndarray) -> dict:
    """The number of correct fish, and of others called a fish, by the top label."""
    top, fish = scores.argmax(1), truth != LABELS.index(NOT_FISH)
    return {
        "fish": int(fish.sum()),
        "fish_right": int((top == truth)[fish].sum()),
        "others": int((~fish).sum()),
        "others_called_fish": int((top != truth)[~fish].sum()),
    }


def agreement(a: np.ndarray, b: np.ndarray) -> dict:
    """Agreement of two models on the same inputs; the difference of a picture is its largest score difference."""
    differences = np.abs(a - b).max(1)
    return {
        "same_top": int((a.argmax(1) == b.argmax(1)).sum()),
        "of": len(a),
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
    }


def creation_ms(data: bytes, level: str, repeats: int = 5) -> float:
    """The median time to create a session at an optimization level, in milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        Model(data, level)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def inference_ms(model: Model, x: np.ndarray, repeats: int = 100) -> tuple:
    """(median, least) time of one image, in milliseconds."""
    for _ in range(10):
        model.scores([x])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.scores([x])
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3, min(times) * 1e3
