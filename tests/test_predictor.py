"""The predictor and exported models where they could part from the model. Round trips are in test_checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sketchray import doodles
from sketchray.batch import pad
from sketchray.checkpoint import Meta, save
from sketchray.errors import CheckpointError
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.predictor import Predictor, export, softmax

CLASSES = ["arrow", "bee", "cat", "dog", "eye", "fish"]
SMALL = ModelConfig(
    max_points=30, conv_channels=(6,), conv_kernels=(3,), conv_strides=(2,), rnn_layers=1, rnn_size=4, conv_norm="batch"
)
CONV = ModelConfig(features="deltas", conv_channels=(6,), conv_kernels=(5,), conv_strides=(1,), rnn_layers=0)
DRAWINGS = [doodles.draw(name, index) for name in ("arrow", "spiral", "star") for index in range(3)]


def write(directory: Path, model: ModelConfig = CONV, *, top1: float = 0.5, seed: int = 0, poison: bool = False) -> str:
    """Writes a checkpoint of an untrained model, and returns its path."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    classifier = StrokeClassifier(model, len(CLASSES))
    if poison:
        torch.nn.init.constant_(classifier.head.bias, torch.nan)
    meta = Meta(
        model=model,
        config={},
        classes=CLASSES,
        epoch=1,
        step=1,
        metrics={"val_top1": top1},
        data={},
        licence="none",
        versions={},
    )
    save(directory, classifier.state_dict(), meta)
    return str(directory)


def test_guesses_are_the_likeliest_classes_best_first(tmp_path: Path) -> None:
    predictor = Predictor.load(write(tmp_path / "a"))
    probability = softmax(predictor.logits(DRAWINGS))
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-6)
    for row, three, everything in zip(
        probability, predictor.predict(DRAWINGS, top_k=3), predictor.predict(DRAWINGS, top_k=99), strict=True
    ):
        assert three == everything[:3]
        assert [guess.probability for guess in everything] == sorted(row.tolist(), reverse=True)
        assert {guess.label: guess.probability for guess in everything} == dict(zip(CLASSES, row.tolist(), strict=True))


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000, 1000, -1000]], np.float32)), [[0.5, 0.5, 0]])


def test_a_drawing_is_answered_alike_alone_and_among_longer_ones(tmp_path: Path) -> None:
    predictor = Predictor.load(write(tmp_path / "a", SMALL))
    together = predictor.logits(DRAWINGS)
    for drawing, row in zip(DRAWINGS, together, strict=True):
        # Float32 sums of another length are rounded in another order.
        np.testing.assert_allclose(predictor.logits([drawing])[0], row, rtol=1e-4, atol=2e-6)


def test_a_drawing_is_cut_at_the_maximum_of_the_model(tmp_path: Path) -> None:
    predictor = Predictor.load(write(tmp_path / "a", SMALL))
    spiral = DRAWINGS[3]
    assert len(spiral) > 30
    np.testing.assert_array_equal(predictor.logits([spiral]), predictor.logits([spiral[:30]]))
    assert np.abs(predictor.logits([spiral]) - predictor.logits([spiral[:20]])).max() > 1e-4


def test_a_run_is_answered_by_its_best_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "run" / "first", top1=0.9, seed=1)
    write(tmp_path / "run" / "second", top1=0.8, seed=2)
    best, first, second = (Predictor.load(str(tmp_path / "run" / name)) for name in ("", "first", "second"))
    assert best.version == first.version != second.version
    np.testing.assert_array_equal(best.logits(DRAWINGS), first.logits(DRAWINGS))


def test_the_version_changes_with_the_class_names_also(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a"))
    before = Predictor.load(str(path)).version
    shutil.copytree(path, tmp_path / "copy")
    assert Predictor.load(str(tmp_path / "copy")).version == before
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "classes": CLASSES[::-1]}))
    assert Predictor.load(str(path)).version != before


def test_an_exported_model_holds_for_all_sizes_and_ignores_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "a", SMALL)
    report = export(path, str(tmp_path / "a.onnx"))
    assert report["bytes"] == (tmp_path / "a.onnx").stat().st_size
    assert not list(tmp_path.glob("*.partial"))
    ours, theirs = Predictor.load(path), Predictor.load(str(tmp_path / "a.onnx"))
    assert theirs.meta == ours.meta
    generator = torch.Generator().manual_seed(0)
    for number, longest in ((1, 1), (1, 2), (2, 1), (7, 3), (64, 29), (3, 30), (3, 31), (2, 200)):
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


def test_an_export_that_answers_nan_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a", poison=True)
    with pytest.raises(CheckpointError, match="differs by nan from the checkpoint; not written"):
        export(path, str(tmp_path / "a.onnx"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_exported_or_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        export(str(tmp_path / "nowhere"), str(tmp_path / "a.onnx"))
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        Predictor.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"none\.onnx: .*write it with jobs/export\.py"):
        Predictor.load(str(tmp_path / "none.onnx"))


def test_an_onnx_model_of_somebody_else_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    same = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [value], [same])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"other\.onnx: not a model that jobs/export\.py wrote"):
        Predictor.load(str(tmp_path / "other.onnx"))
