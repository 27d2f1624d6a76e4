"""The peer: a typical server with FastAPI, Pillow and ONNX Runtime. weir-rig starts and measures it.

POST /predict takes an encoded image as its body and answers with the five best labels; GET /health answers when the
model is loaded. The preprocessing is that of the model bundle, done the usual way: full decode, resize so that
the shorter side is 256 (antialiased bilinear), centre crop of 224, (x - 127) / 128, NCHW.
"""

import argparse
import io
import json
import os

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, UnidentifiedImageError

RESIZE = 256
CROP = 224
MEAN = np.float32(127.0)
SCALE = np.float32(1.0 / 128.0)
TOP = 5


class Classifier:
    """Encoded image to labels with scores. One per worker process."""

    def __init__(self, model, labels):
        options = onnxruntime.SessionOptions()
        # One process per core, so more threads per process would only compete.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        with open(labels, encoding="utf-8") as file:
            self.labels = file.read().split()
        self.session.run(None, {self.input: np.zeros((1, 3, CROP, CROP), np.float32)})

    def tensor(self, data):
        """Encoded bytes to float32 [1, 3, 224, 224]."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = RESIZE / min(image.size)
        size = tuple(max(RESIZE, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - CROP) // 2 for side in size)
        image = image.crop((left, top, left + CROP, top + CROP))
        pixels = np.asarray(image, np.float32)
        pixels = (pixels - MEAN) * SCALE
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))[np.newaxis]

    def classify(self, data):
        """The best labels, best first."""
        scores = self.session.run(None, {self.input: self.tensor(data)})[0][0]
        best = np.argsort(scores)[::-1][:TOP]
        return [{"label": self.labels[i], "score": float(scores[i])} for i in best]


def reply(status, value):
    return Response(json.dumps(value), status, media_type="application/json")


def make_app():
    """Called by uvicorn in each worker."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    classifier = Classifier(os.environ["WEIR_PEER_MODEL"], os.environ["WEIR_PEER_LABELS"])

    # In a thread pool, because one worker may have accepted most of the connections: Pillow and ONNX Runtime release
    # the interpreter lock, so that both cores work even then. Measured: the same CPU time per request as in the event loop.
    @app.post("/predict")
    async def predict(request: Request):
        try:
            predictions = await run_in_threadpool(classifier.classify, await request.body())
        except (UnidentifiedImageError, OSError) as error:
            return reply(400, {"error": str(error), "code": "corrupt_image"})
        best = predictions[0]
        return reply(200, {"species": best["label"], "confidence": best["score"], "predictions": predictions})

    @app.get("/health")
    async def health():
        return reply(200, {"status": "ready"})

    return app


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="the fp32 ONNX file")
    parser.add_argument("--labels", required=True, help="its labels, one per line")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    # The workers are new processes, which read their settings from the environment.
    os.environ["WEIR_PEER_MODEL"] = os.path.abspath(arguments.model)
    os.environ["WEIR_PEER_LABELS"] = os.path.abspath(arguments.labels)
    uvicorn.run(
        "fastapi_server:make_app",
        factory=True,
        app_dir=os.path.dirname(os.path.abspath(__file__)),
        host="127.0.0.1",
        port=arguments.port,
        workers=arguments.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
