"""Exported models beside their checkpoints: at all sizes, and where they must be refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from untrained import CONV, SMALL, write

from sketchray.batch import pad
from sketchray.errors import CheckpointError
from sketchray.exported import export
from sketchray.model import ModelConfig
from sketchray.predictor import Predictor

GRU = ModelConfig(
    max_points=30, conv_channels=(6,), conv_kernels=(3,), conv_strides=(2,), cell="gru", rnn_size=4, pooling=("last",)
)
SIZES = ((1, 1), (1, 2), (2, 1), (1, 3), (7, 4), (2, 17), (64, 29), (3, 30), (3, 31), (2, 200))


@pytest.mark.parametrize("model", [SMALL, GRU, CONV], ids=["lstm", "gru", "conv"])
def test_an_exported_model_holds_for_all_sizes_and_ignores_padding(tmp_path: Path, model: ModelConfig) -> None:
    path = write(tmp_path / "a", model)
    ours, theirs = Predictor.load(path, "torch"), Predictor.load(path, "onnx")
    assert theirs.version == ours.version
    generator = torch.Generator().manual_seed(0)
    for number, longest in SIZES:
        points = torch.randint(-30, 30, (number, longest, 3), generator=generator)
        points[..., 2] = torch.rand(number, longest, generator=generator) < 0.2
        lengths = torch.randint(1, longest + 1, (number,), generator=generator)
        expected = ours.padded_logits(points, lengths)
        # The kernels of two libraries round differently; a probability moves by less than 1e-4.
        np.testing.assert_allclose(theirs.padded_logits(points, lengths), expected, rtol=0, atol=1e-4)
        clean = points * (torch.arange(longest) < lengths[:, None])[..., None]
        np.testing.assert_allclose(theirs.padded_logits(clean, lengths), expected, rtol=0, atol=1e-4)
    dot = pad(torch.zeros(2, 3), torch.tensor([0, 2]), 30)  # all points at one place: no side to divide by
    np.testing.assert_allclose(theirs.padded_logits(*dot), ours.padded_logits(*dot), rtol=0, atol=1e-4)
    assert np.isfinite(theirs.padded_logits(*dot)).all()


def test_the_file_of_the_job_is_a_model_by_itself(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a"), tmp_path / "a.onnx"
    report = export(path, str(out))
    assert report == {
        "checkpoint": path,
        "out": str(out),
        "bytes": out.stat().st_size,
        "largest_difference": report["largest_difference"],
    }
    assert report["largest_difference"] <= 1e-4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "a.onnx"]
    ours, theirs = Predictor.load(path), Predictor.load(str(out))
    assert theirs.meta == ours.meta
    drawings = [np.ones((length, 3), np.int16) for length in (1, 5, 300)]
    np.testing.assert_allclose(theirs.logits(drawings), ours.logits(drawings), rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError, match="backend torch runs no ONNX file"):
        Predictor.load(str(out), "torch")


def test_an_export_that_answers_nan_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", poison=True)
    with pytest.raises(CheckpointError, match="differs by nan from the checkpoint"):
        export(path, str(tmp_path / "a.onnx"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    with pytest.raises(CheckpointError, match="differs by nan"):
        Predictor.load(path, "onnx")


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        export(str(tmp_path / "nowhere"), str(tmp_path / "a.onnx"))
    with pytest.raises(CheckpointError, match=r"name a file that ends in \.onnx"):
        export(path, str(tmp_path / "a.bin"))
    with pytest.raises(CheckpointError, match="no such directory; make it first"):
        export(path, str(tmp_path / "no" / "a.onnx"))


def test_an_onnx_model_of_somebody_else_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    same = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [value], [same])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "other.onnx")
    (tmp_path / "none.onnx").write_bytes(b"\0\1")
    for name in ("other", "none"):
        with pytest.raises(CheckpointError, match=rf"{name}\.onnx: not a model that jobs/export\.py wrote"):
            Predictor.load(str(tmp_path / f"{name}.onnx"))
