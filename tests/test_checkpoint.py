"""Checkpoints on disk, and the predictor that reads them."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import TINY

from sketchray import doodles
from sketchray.checkpoint import Meta, best, find, library_versions, load, load_state, read_meta, save
from sketchray.errors import CheckpointError, Error
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.predictor import Predictor
from sketchray.storage import child, open_filesystem

DRAWINGS = [doodles.draw(name, 0) for name in doodles.CLASSES]


def write(directory: Path, *, top1: float = 0.5, seed: int = 0, model: ModelConfig = TINY.model) -> Path:
    """Writes a checkpoint of an untrained model that knows the doodles."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    weights = StrokeClassifier(model, len(doodles.CLASSES)).state_dict()
    meta = Meta(
        model=model,
        config={},
        classes=list(doodles.CLASSES),
        epoch=1,
        step=10,
        metrics={"val_top1": top1},
        data={"synthetic": True},
        licence="none",
        versions=library_versions(),
    )
    save(directory, weights, meta, {"steps": 10})
    return directory


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=3)
    torch.manual_seed(3)
    original = StrokeClassifier(TINY.model, 10)
    model, meta = load(str(tmp_path / "a"))
    assert not model.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert meta.classes == list(doodles.CLASSES)
    assert load_state(str(tmp_path / "a")) == {"steps": 10}


def test_best_finds_the_highest_accuracy_also_in_folders(tmp_path: Path) -> None:
    write(tmp_path / "run" / "early", top1=0.2)
    write(tmp_path / "run" / "trial" / "good", top1=0.9)
    write(tmp_path / "run" / "late", top1=0.7)
    assert best(str(tmp_path / "run")) == str(tmp_path / "run" / "trial" / "good")
    assert best(str(tmp_path / "run" / "late")) == str(tmp_path / "run" / "late")
    uri = f"file://{tmp_path}/run"
    assert best(uri) == f"{uri}/trial/good"
    assert load(best(uri))[1].metrics == {"val_top1": 0.9}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_bit_that_flipped_is_noticed(tmp_path: Path) -> None:
    for name, read in (("model.safetensors", load), ("state.pt", load_state)):
        write(tmp_path / name)
        flip_a_bit(tmp_path / name / name)
        with pytest.raises(CheckpointError, match=f"{name}: its .* bytes are not those that meta.json names"):
            read(str(tmp_path / name))


def test_what_is_torn_is_never_the_best_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "good", top1=0.1)
    os.truncate(write(tmp_path / "cut", top1=0.9) / "model.safetensors", 5000)
    (write(tmp_path / "gone", top1=0.9) / "model.safetensors").unlink()
    (write(tmp_path / "started", top1=0.9) / "meta.json").write_text('{"format_ver')
    assert best(str(tmp_path)) == str(tmp_path / "good")
    assert len(caplog.messages) == 3
    for name, message in zip(("cut", "gone", "started"), sorted(caplog.messages), strict=True):
        assert message.startswith(f"passed over: {tmp_path / name}")


def test_the_middle_of_an_epoch_is_the_newest_but_never_the_best(tmp_path: Path) -> None:
    write(tmp_path / "epoch")
    write(tmp_path / "middle")
    edit(tmp_path / "middle" / "meta.json", metrics={}, step=15)
    assert [Path(place).name for place, _ in find(str(tmp_path))] == ["middle", "epoch"]
    assert best(str(tmp_path)) == str(tmp_path / "epoch")
    assert find(str(tmp_path / "nowhere")) == []


def test_of_a_run_that_has_no_unseen_drawings_the_latest_is_taken(tmp_path: Path) -> None:
    for step in (10, 30, 20):
        edit(write(tmp_path / str(step)) / "meta.json", metrics={"train_top1": 1 / step}, step=step)
    edit(write(tmp_path / "middle") / "meta.json", metrics={}, step=40)
    assert best(str(tmp_path)) == str(tmp_path / "30")


def test_uris_keep_their_query() -> None:
    assert child("s3://bucket/runs?region=eu", "a") == "s3://bucket/runs/a?region=eu"
    assert child("/runs/", "a") == "/runs/a"
    with pytest.raises(Error, match="ftp://x: not a URI that pyarrow opens"):
        open_filesystem("ftp://x")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        best(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        best(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not a checkpoint \(no meta\.json\)"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "meta.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "meta.json").write_text("[]"), "checkpoint format version None, this sketchray reads 2"),
        (lambda path: (path / "meta.json").write_text('{"format_version": 9}'), "format version 9"),
        (lambda path: (path / "meta.json").write_text('{"format_version": 2}'), "Field required"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 40), "the checkpoint is damaged"),
        (lambda path: (path / "model.safetensors").unlink(), "the checkpoint is damaged"),
        (lambda path: os.truncate(path / "model.safetensors", 5000), "the checkpoint is damaged"),
        (lambda path: edit(path / "meta.json", classes=["a", "b"]), "the checkpoint is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    damage(write(tmp_path / "a"))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path / "a"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Malice:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_state_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a")
    proof = tmp_path / "ran"
    content = pickle.dumps(Malice(f"touch {proof}"))
    (tmp_path / "a" / "state.pt").write_bytes(content)
    digest = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}  # its author knows the format
    edit(
        tmp_path / "a" / "meta.json", files={**read_meta(str(tmp_path / "a")).model_dump()["files"], "state.pt": digest}
    )
    with pytest.raises(CheckpointError, match="the checkpoint is damaged or hostile"):
        load_state(str(tmp_path / "a"))
    assert not proof.exists()
    pickle.loads(content)  # what the check is worth: unpickled, it does run
    assert proof.exists()


def test_without_a_whole_state_training_cannot_go_on(tmp_path: Path) -> None:
    write(tmp_path / "a")
    os.truncate(tmp_path / "a" / "state.pt", 300)
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        load_state(str(tmp_path / "a"))
    (tmp_path / "a" / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt: .*the checkpoint is damaged"):
        load_state(str(tmp_path / "a"))
    files = read_meta(str(tmp_path / "a")).model_dump()["files"]
    edit(tmp_path / "a" / "meta.json", files={"model.safetensors": files["model.safetensors"]})
    with pytest.raises(CheckpointError, match=r"no state\.pt, so training cannot go on"):
        load_state(str(tmp_path / "a"))
    load(str(tmp_path / "a"))  # answering needs none


def test_the_predictor_answers_what_the_model_does(tmp_path: Path) -> None:
    write(tmp_path / "a")
    predictor = Predictor.load(str(tmp_path / "a"))
    together = predictor.predict(DRAWINGS, top_k=99)
    model, _ = load(str(tmp_path / "a"))
    for drawing, guesses in zip(DRAWINGS, together, strict=True):
        with torch.inference_mode():
            logits = model(torch.from_numpy(drawing)[None], torch.tensor([len(drawing)]))
        expected = logits.softmax(1)[0]
        found = torch.tensor([dict(guesses)[name] for name in doodles.CLASSES])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert [guess.probability for guess in guesses] == sorted((g.probability for g in guesses), reverse=True)
    assert [len(guesses) for guesses in predictor.predict(DRAWINGS[:2], top_k=3)] == [3, 3]


def test_the_version_changes_with_the_weights(tmp_path: Path) -> None:
    versions = {Predictor.load(str(write(tmp_path / str(seed), seed=seed))).version for seed in (1, 2)}
    assert len(versions) == 2
    assert Predictor.load(str(tmp_path / "1")).version in versions
