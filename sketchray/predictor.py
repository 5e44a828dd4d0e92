"""A checkpoint or an exported ONNX file as a function from drawings to labels; and the export. No Ray.

Shapes: B drawings, T points, K classes.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchray import checkpoint as checkpoints
from sketchray.batch import pad
from sketchray.checkpoint import META, WEIGHTS, Meta
from sketchray.errors import CheckpointError
from sketchray.model import StrokeClassifier
from sketchray.storage import absolute, child, open_filesystem
from sketchray.strokes import Int16Array

FloatArray = npt.NDArray[np.float32]


class Guess(NamedTuple):
    """A class name and its probability."""

    label: str
    probability: float


class Predictor:
    """Answers with labels; made by `Predictor.load`.

    Attributes:
        meta: of the checkpoint.
        version: 12 hexadecimal digits that change when the weights or the meta do.
    """

    def __init__(self, model: StrokeClassifier | None, meta: Meta, version: str, onnx: bytes | None = None) -> None:
        self.model, self.meta, self.version = model, meta, version
        self.session = None
        if onnx is not None:
            import onnxruntime  # only for exported models

            self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])

    @classmethod
    def load(cls, uri: str) -> Self:
        """Returns the predictor of a checkpoint, of a run's best one, or of a file that `export` wrote.

        Raises:
            CheckpointError: it is none of these.
        """
        if uri.endswith(".onnx"):
            return cls._load_onnx(uri)
        uri = checkpoints.best(absolute(uri))
        model, meta = checkpoints.load(uri)
        digest = hashlib.sha256()
        for name in (WEIGHTS, META):
            filesystem, path = open_filesystem(child(uri, name))
            with filesystem.open_input_file(path) as file:
                digest.update(file.read())
        return cls(model, meta, digest.hexdigest()[:12])

    @classmethod
    def _load_onnx(cls, uri: str) -> Self:
        import onnx

        filesystem, path = open_filesystem(absolute(uri))
        try:
            with filesystem.open_input_file(path) as file:
                content = file.read()
        except OSError as error:
            raise CheckpointError(f"{uri}: {error}; write it with jobs/export.py") from error
        try:
            properties = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
            meta = Meta.model_validate_json(properties["sketchray"])
        except Exception as error:  # protobuf's, KeyError, ValidationError: all mean the same to the user
            raise CheckpointError(f"{uri}: not a model that jobs/export.py wrote ({error})") from error
        return cls(None, meta, hashlib.sha256(content).hexdigest()[:12], content)

    @torch.inference_mode()
    def logits(self, drawings: Sequence[Int16Array]) -> FloatArray:
        """Returns `(B, K)` logits of drawings given as `(N, 3)` points."""
        values = torch.from_numpy(np.concatenate(drawings))
        lengths = np.fromiter(map(len, drawings), np.int64, len(drawings))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        return self.padded_logits(*pad(values, offsets, self.meta.model.max_points))

    @torch.inference_mode()
    def padded_logits(self, points: Tensor, lengths: Tensor) -> FloatArray:
        """Returns `(B, K)` logits of `(B, T, 3)` points and `(B,)` lengths."""
        if self.session is not None:
            inputs = {"points": points.float().numpy(), "lengths": lengths.numpy()}
            answer: FloatArray = self.session.run(["logits"], inputs)[0]
            return answer
        assert self.model is not None
        return self.model(points, lengths).numpy()  # type: ignore[no-any-return]

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


def export(uri: str, out: str) -> dict[str, Any]:
    """Writes a checkpoint as one ONNX file, checks that it answers the same, and returns the job's JSON.

    Inputs `points` `(B, T, 3)` float32 and `lengths` `(B,)` int64, output `logits` `(B, K)`; B and T are free.

    Raises:
        CheckpointError: there is no checkpoint, `out` cannot be written, or the exported model disagrees.
    """
    uri = checkpoints.best(absolute(uri))
    model, meta = checkpoints.load(uri)
    path = Path(out)
    if path.suffix != ".onnx":
        raise CheckpointError(f"--out {out}: name a file that ends in .onnx")
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"--out {out}: no such directory; make it first")
    points, lengths = _example(meta.model.max_points, batch=3, steps=17)
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's about itself; what counts is checked below
        program = torch.onnx.export(
            model,
            (points, lengths),
            input_names=["points", "lengths"],
            output_names=["logits"],
            dynamic_shapes={"points": {0: batch, 1: steps}, "lengths": {0: batch}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "sketchray", json.dumps(meta.model_dump(mode="json"))
    content = proto.SerializeToString()
    exported = Predictor(None, meta, "", content)
    difference = 0.0
    for number, longest in ((1, 1), (1, 40), (5, 126)):
        points, lengths = _example(meta.model.max_points, batch=number, steps=longest)
        with torch.inference_mode():
            expected = model(points, lengths).numpy()
        difference = float(np.maximum(difference, np.abs(expected - exported.padded_logits(points, lengths)).max()))
    if not difference <= 1e-4:  # NaN is a difference too
        raise CheckpointError(f"{uri}: the exported model differs by {difference:g} from the checkpoint; not written")
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return {"checkpoint": uri, "out": str(path.absolute()), "bytes": len(content), "largest_difference": difference}


def _example(max_points: int, *, batch: int, steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + steps)
    steps = min(steps, max_points)
    points = torch.randint(-40, 40, (batch, steps, 3), generator=generator).float()
    points[..., 2] = (torch.rand(batch, steps, generator=generator) < 0.1).float()
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    lengths[0] = steps
    return points, lengths
