"""Weights that a run starts from, and models that it learns from. No Ray."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY

from sketchray import checkpoint as checkpoints
from sketchray.errors import CheckpointError
from sketchray.model import StrokeClassifier
from sketchray.origins import initial_weights, load_teachers

CLASSES = ["ant", "bat", "cat"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints, whose weights are those of a seed, their step; the first is the better one."""
    for step, top1 in ((10, 0.5), (20, 0.4)):
        torch.manual_seed(step)
        meta = checkpoints.Meta(
            model=TINY.model,
            config=TINY.model_dump(mode="json"),
            classes=CLASSES,
            epoch=0,
            step=step,
            metrics={"val_top1": top1},
            data={},
            licence="CC-BY-4.0",
            versions={},
        )
        files = checkpoints.pack(StrokeClassifier(TINY.model, len(CLASSES)).state_dict(), meta, {})
        checkpoints.write(str(tmp_path / f"checkpoint_{step:09d}"), files)
    return tmp_path


def test_classes_that_both_have_keep_their_rows_of_the_head(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    torch.manual_seed(10)
    source = StrokeClassifier(TINY.model, len(CLASSES)).state_dict()
    torch.manual_seed(TINY.seed)
    fresh = StrokeClassifier(TINY.model, 4).state_dict()
    weights = initial_weights(str(run), TINY, ["cat", "dog", "ant", "eel"])  # of the run's best, step 10
    for part in ("head.weight", "head.bias"):
        assert torch.equal(weights[part][0], source[part][2])
        assert torch.equal(weights[part][2], source[part][0])
        assert torch.equal(weights[part][[1, 3]], fresh[part][[1, 3]])
    body = [key for key in source if not key.startswith("head.")]
    assert all(torch.equal(weights[key], source[key]) for key in body)
    assert caplog.messages == [f"starting from {run}/checkpoint_000000010: 2 of 4 classes are new to it"]
    same = initial_weights(str(run), TINY, CLASSES)
    assert all(torch.equal(same[key], source[key]) for key in source)


def test_fine_tuning_needs_a_checkpoint_of_the_same_architecture(run: Path, tmp_path: Path) -> None:
    other = TINY.model_copy(update={"model": TINY.model.model_copy(update={"rnn_size": 64})})
    with pytest.raises(CheckpointError, match=r"its model has rnn_size=32, not 64; leave --model\.rnn_size out"):
        initial_weights(str(run), other, CLASSES)
    with pytest.raises(CheckpointError, match="no such directory"):
        initial_weights(str(tmp_path / "nothing"), TINY, CLASSES)
    for step in (10, 20):
        shutil.rmtree(run / f"checkpoint_{step:09d}")
    with pytest.raises(CheckpointError, match="a run that has finished an epoch"):
        initial_weights(str(run), TINY, CLASSES)


def test_teachers_need_the_same_classes_in_the_same_order(run: Path) -> None:
    uris = [str(run / f"checkpoint_{step:09d}") for step in (10, 20)]
    assert len(load_teachers(uris, CLASSES)) == 2
    with pytest.raises(
        CheckpointError,
        match=r"--teachers .*10: its 3 classes are not the 4 of the data \('dog' is not a class of both\)",
    ):
        load_teachers(uris, [*CLASSES, "dog"])
    with pytest.raises(CheckpointError, match="the same in another order"):
        load_teachers(uris, CLASSES[::-1])
