"""Refuses to write a bundle whose smaller models deviate from the fp32 model."""

import io

import onnx
from PIL import Image

from .bundle import GOLDEN, jpeg
from .check import Model, agreement
from .head import LABELS
from .preprocess import preprocess

# Least share of equal top labels, and the largest and the mean difference of a score, over the calibration pictures.
# If no class is likely, a small change of one logit changes its score much; int8 needs a margin for such pictures.
LIMITS = {"fp16": (0.99, 0.02, 0.005), "int8": (0.95, 0.35, 0.06)}


def compare(reference: onnx.ModelProto, others: dict, inputs: list):
    """Prints how `others` (precision -> model) agree with `reference`; raises ValueError if they do not, or
    if one fails a golden picture."""
    golden = _golden_inputs()
    wanted = Model(reference.SerializeToString()).scores(inputs)
    for precision, model in {"fp32": reference, **others}.items():
        running = Model(model.SerializeToString())
        if precision in LIMITS:
            _check_agreement(precision, agreement(wanted, running.scores(inputs)))
        _check_golden(precision, running.scores(golden))


def _golden_inputs() -> list:
    return [preprocess(Image.open(io.BytesIO(jpeg(draw())))) for _, draw, _, _ in GOLDEN]


def _check_agreement(precision, result):
    share, largest, mean = LIMITS[precision]
    print(
        f"{precision}: same top label as fp32 on {result['same_top']} of {result['of']},"
        f" largest difference of a score {result['largest_difference']:.4f},"
        f" mean {result['mean_difference']:.4f}"
    )
    if result["same_top"] < share * result["of"]:
        raise ValueError(f"{precision} strays from fp32: the same top label on at least {share:.0%} is required")
    if result["largest_difference"] > largest or result["mean_difference"] > mean:
        raise ValueError(f"{precision} strays from fp32: at most {largest}, and {mean} in the mean, are allowed")


def _check_golden(precision, scores):
    for (name, _, label, least), row in zip(GOLDEN, scores, strict=True):
        score = row[LABELS.index(label)]
        print(f"{precision}: golden/{name}: {label} {score:.3f}")
        if row.argmax() != LABELS.index(label) or score < least:
            raise ValueError(f"{precision} gives golden/{name} {label} {score:.3f}, at least {least} is required")
