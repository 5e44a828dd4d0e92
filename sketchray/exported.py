"""Exported models: a checkpoint as an ONNX file, which is compared with it before it answers. No Ray.

Shapes: B drawings, T points, K classes.
"""

import hashlib
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sketchray import checkpoint as checkpoints
from sketchray.checkpoint import Meta
from sketchray.errors import CheckpointError
from sketchray.model import StrokeClassifier
from sketchray.storage import absolute, read_file

TOLERANCE = 1e-4  # of a logit: two libraries round differently, and a probability moves by less than that
SIZES = ((1, 1), (1, 40), (5, 126))  # drawings and points with which an export is compared


class ExportedModel:
    """Points and lengths to logits, by ONNX Runtime, with as many threads as PyTorch has."""

    def __init__(self, content: bytes) -> None:
        import onnxruntime  # only for exported models

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # in a replica: as many as it has CPUs
        options.enable_mem_pattern = False  # one plan a shape would be kept, and there are many shapes
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, points: Tensor, lengths: Tensor) -> Tensor:
        """Returns `(B, K)` logits of `(B, T, 3)` points and `(B,)` lengths."""
        inputs = {"points": points.float().numpy(), "lengths": lengths.numpy()}
        return torch.from_numpy(self.session.run(["logits"], inputs)[0])

    @property
    def meta(self) -> Meta:
        """That of the checkpoint, which is inside the file."""
        return Meta.model_validate_json(self.session.get_modelmeta().custom_metadata_map["sketchray"])


def open_exported(uri: str) -> tuple[ExportedModel, Meta, str]:
    """Returns the model of a file that `export` wrote, its meta, and its version.

    Raises:
        CheckpointError: it is no such file.
    """
    try:
        content = read_file(absolute(uri))
    except OSError as error:
        raise CheckpointError(f"{uri}: {error}; write it with jobs/export.py") from error
    try:
        model = ExportedModel(content)
        meta = model.meta
    except Exception as error:  # ONNX Runtime's, KeyError, ValidationError: all mean the same to the user
        raise CheckpointError(f"{uri}: not a model that jobs/export.py wrote ({error})") from error
    return model, meta, hashlib.sha256(content).hexdigest()[:12]


def to_onnx(uri: str, model: StrokeClassifier, meta: Meta) -> tuple[bytes, float]:
    """Returns a checkpoint as an ONNX file, and the largest difference between their logits.

    Inputs `points` `(B, T, 3)` float32 and `lengths` `(B,)` int64, output `logits` `(B, K)`; B and T are free.

    Raises:
        CheckpointError: the exported model disagrees with the checkpoint.
    """
    import onnx  # only to export

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # PyTorch's about itself; what counts is checked below
        torch.onnx.export(
            model,
            _example(model.config.max_points, batch=3, steps=17),
            path,
            input_names=["points", "lengths"],
            output_names=["logits"],
            dynamic_axes={"points": {0: "batch", 1: "steps"}, "lengths": {0: "batch"}},
            opset_version=18,
            # The older of PyTorch's two exporters: the other takes ten times as long, and fails at a GRU.
            dynamo=False,
        )
        proto = onnx.load(path)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "sketchray", json.dumps(meta.model_dump(mode="json"))
    content: bytes = proto.SerializeToString()
    difference = compare(model, ExportedModel(content))
    if not difference <= TOLERANCE:  # NaN is a difference too
        raise CheckpointError(f"{uri}: the exported model differs by {difference:g} from the checkpoint")
    return content, difference


def compare(model: StrokeClassifier, exported: ExportedModel) -> float:
    """Returns the largest difference between the logits of a model and of its export; NaN if there is one."""
    found = []
    for batch, steps in SIZES:
        points, lengths = _example(model.config.max_points, batch=batch, steps=steps)
        with torch.inference_mode():
            found.append((model(points, lengths) - exported(points, lengths)).abs().max())
    return float(torch.stack(found).max())


def export(uri: str, out: str) -> dict[str, Any]:
    """Writes a checkpoint as one ONNX file, and returns the job's JSON.

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
    content, difference = to_onnx(uri, model, meta)
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
