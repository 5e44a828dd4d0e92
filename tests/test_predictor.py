"""The predictor where it could part from the model. Round trips are in test_checkpoint, exports in test_exported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from untrained import CLASSES, SMALL, write

from sketchray import doodles
from sketchray.errors import CheckpointError
from sketchray.predictor import Predictor, softmax

DRAWINGS = [doodles.draw(name, index) for name in ("arrow", "spiral", "star") for index in range(3)]


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


def test_many_drawings_are_answered_in_their_order_and_those_of_like_length_together(tmp_path: Path) -> None:
    predictor = Predictor.load(write(tmp_path / "a", SMALL))
    drawings = [DRAWINGS[number * 5 % 9][: 1 + number % 29] for number in range(40)]
    padded: list[list[int]] = []

    def model(points: Tensor, lengths: Tensor) -> Tensor:
        padded.append(lengths.tolist())
        return real(points, lengths)

    real, predictor.model = predictor.model, model
    together = predictor.logits(drawings)
    for drawing, row in zip(drawings, together, strict=True):
        np.testing.assert_allclose(predictor.logits([drawing])[0], row, rtol=1e-4, atol=2e-6)  # rounded otherwise
    groups = padded[: -len(drawings)]
    assert [length for group in groups for length in group] == sorted(map(len, drawings))
    assert [len(group) for group in groups] == [5] * 8
    predictor.logits(DRAWINGS[:4])
    assert len(padded[-1]) == 4


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


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        Predictor.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"none\.onnx: .*write it with jobs/export\.py"):
        Predictor.load(str(tmp_path / "none.onnx"))
