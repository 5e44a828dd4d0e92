"""A checkpoint or an exported ONNX file as a function from drawings to labels. No Ray.

Shapes: B drawings, T points, K classes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchray import checkpoint as checkpoints
from sketchray.batch import pad
from sketchray.checkpoint import META, WEIGHTS, Meta
from sketchray.errors import CheckpointError
from sketchray.exported import ExportedModel, open_exported, to_onnx
from sketchray.storage import absolute, child, read_file
from sketchray.strokes import Int16Array

Backend = Literal["onnx", "torch"]
FloatArray = npt.NDArray[np.float32]

GROUP, GROUPS = 4, 8  # drawings of like length that are padded together, at least; and how many such groups, at most


class Guess(NamedTuple):
    """A class name and its probability."""

    label: str
    probability: float


class Predictor:
    """Answers with labels; made by `Predictor.load`.

    Attributes:
        model: `(B, T, 3)` points and `(B,)` lengths to `(B, K)` logits.
        meta: of the checkpoint.
        version: 12 hexadecimal digits that change when the weights or the meta do.
    """

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor], meta: Meta, version: str) -> None:
        self.model, self.meta, self.version = model, meta, version

    @classmethod
    def load(cls, uri: str, backend: Backend | None = None) -> Self:
        """Returns the predictor of a checkpoint, of a run's best one, or of a file that `exported.export` wrote.

        Args:
            uri: of it.
            backend: what runs the model; by default ONNX Runtime for an ONNX file, and PyTorch for a checkpoint. A
                checkpoint is exported for ONNX Runtime in memory, which takes a second.

        Raises:
            CheckpointError: it is none of these, or an ONNX file is to be run by PyTorch.
        """
        if uri.endswith(".onnx"):
            if backend == "torch":
                raise CheckpointError(f"{uri}: backend torch runs no ONNX file; name a checkpoint, or set onnx")
            return cls(*open_exported(uri))
        uri = checkpoints.best(absolute(uri))
        model, meta = checkpoints.load(uri)
        digest = hashlib.sha256()
        for name in (WEIGHTS, META):
            digest.update(read_file(child(uri, name)))
        runs = ExportedModel(to_onnx(uri, model, meta)[0]) if backend == "onnx" else model
        return cls(runs, meta, digest.hexdigest()[:12])

    @torch.inference_mode()
    def logits(self, drawings: Sequence[Int16Array]) -> FloatArray:
        """Returns `(B, K)` logits of drawings given as `(N, 3)` points, in their order.

        Drawings of like length are padded together, since the model works on padding too.
        """
        lengths = np.fromiter(map(len, drawings), np.int64, len(drawings))
        order = np.argsort(lengths, kind="stable")
        size = max(GROUP, len(order) / GROUPS)
        found = np.empty((len(order), len(self.meta.classes)), np.float32)
        for group in np.array_split(order, math.ceil(len(order) / size)):
            values = torch.from_numpy(np.concatenate([drawings[index] for index in group]))
            offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths[group])]))
            found[group] = self.padded_logits(*pad(values, offsets, self.meta.model.max_points))
        return found

    @torch.inference_mode()
    def padded_logits(self, points: Tensor, lengths: Tensor) -> FloatArray:
        """Returns `(B, K)` logits of `(B, T, 3)` points and `(B,)` lengths."""
        answer: FloatArray = self.model(points, lengths).numpy()
        return answer

    def predict(self, drawings: Sequence[Int16Array], top_k: int = 5) -> list[list[Guess]]:
        """Returns the `top_k` likeliest classes of each drawing, best first."""
        probability = softmax(self.logits(drawings))
        top_k = min(top_k, len(self.meta.classes))
        best = np.argsort(-probability, axis=1, kind="stable")[:, :top_k]
        return [
            [Guess(self.meta.classes[index], float(row[index])) for index in indices]
            for row, indices in zip(probability, best, strict=True)
        ]


def softmax(logits: FloatArray) -> FloatArray:
    """Returns `(B, K)` probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    answer: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return answer
