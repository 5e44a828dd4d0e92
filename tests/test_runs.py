"""A run's directory: claimed once, its checkpoints kept or passed over. No Ray."""

import errno
import json
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY

from sketchray import checkpoint as checkpoints
from sketchray import storage
from sketchray.errors import CheckpointError, RunError, StorageError
from sketchray.keeper import Keeper
from sketchray.model import StrokeClassifier
from sketchray.runs import check_data, claim_run, last_checkpoint, newest, started_with

CLASSES = ["ant", "bat", "cat"]
DATA: dict[str, Any] = {"source": "generated", "splits": {"train": 8, "valid": 2, "test": 2}}


def contents(step: int, top1: float | None = None, classes: list[str] = CLASSES) -> dict[str, bytes]:
    """A checkpoint whose weights are those of a seed, its step; without `top1` one of the middle of an epoch."""
    torch.manual_seed(step)
    metrics = {} if top1 is None else {"val_top1": top1}
    meta = checkpoints.Meta(
        model=TINY.model,
        config=TINY.model_dump(mode="json"),
        classes=classes,
        epoch=0,
        step=step,
        metrics=metrics,
        data=DATA,
        licence="CC-BY-4.0",
        versions={},
    )
    return checkpoints.pack(StrokeClassifier(TINY.model, len(classes)).state_dict(), meta, {"steps": step})


def kept(run: Path) -> list[str]:
    """The names of the checkpoints in a run, by step."""
    return sorted(path.name for path in run.glob("checkpoint_*"))


def name(step: int) -> str:
    return f"checkpoint_{step:09d}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with four checkpoints: the best two, of epochs, and two of a later epoch's middle."""
    keeper = Keeper(str(tmp_path))
    for step, top1 in ((5, 0.1), (10, 0.5), (15, 0.2), (20, 0.4), (30, None), (40, None)):
        keeper.keep(step, contents(step, top1), wait=True)
    keeper.close()
    return tmp_path


def test_the_best_two_and_the_last_two_are_kept(run: Path) -> None:
    assert kept(run) == [name(10), name(20), name(30), name(40)]
    assert checkpoints.best(str(run)) == str(run / name(10))
    assert last_checkpoint(str(run)) == str(run / name(40))


def test_what_is_stored_is_what_is_read(run: Path) -> None:
    found = newest(str(run))
    assert found is not None
    weights, state, meta = found
    assert state == {"steps": 40}
    assert meta.step == 40
    torch.manual_seed(40)
    expected = StrokeClassifier(TINY.model, len(CLASSES)).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights.items())


def flip(path: Path) -> None:
    """Flips a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Leaves the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "a bit of the weights": (lambda run: flip(run / "model.safetensors"), "are not those that meta.json names"),
    "a bit of the state": (lambda run: flip(run / "state.pt"), "are not those that meta.json names"),
    "weights cut": (lambda run: cut(run / "model.safetensors"), "missing or cut short"),
    "weights missing": (lambda run: (run / "model.safetensors").unlink(), "missing or cut short"),
    "state cut": (lambda run: cut(run / "state.pt"), "are not those that meta.json names"),
    "state missing": (lambda run: (run / "state.pt").unlink(), "No such file"),
    "meta cut": (lambda run: cut(run / "meta.json"), "not valid JSON"),
    "meta empty": (lambda run: (run / "meta.json").write_bytes(b""), "not valid JSON"),
    "meta missing": (lambda run: (run / "meta.json").unlink(), "was not stored to the end"),
    "nothing in it": (lambda run: [path.unlink() for path in run.iterdir()], "was not stored to the end"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(run: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = DAMAGE[case]
    damage(run / name(40))
    found = newest(str(run))
    assert found is not None
    assert found[2].step == 30
    (message,) = [message for message in caplog.messages if message.startswith("passed over")]
    assert f"{run}/{name(40)}" in message
    assert reason in message


def test_damaged_weights_are_never_the_best(run: Path) -> None:
    keeper = Keeper(str(run))
    keeper.keep(50, contents(50, 0.9), wait=True)
    for damage in (flip, cut, Path.unlink):
        damage(run / name(50) / "model.safetensors")
        assert checkpoints.best(str(run)) == str(run / name(10))
        keeper.keep(50, contents(50, 0.9), wait=True)  # learned again, in its place
        assert checkpoints.best(str(run)) == str(run / name(50))
    keeper.close()


def test_what_was_passed_over_goes_once_the_run_is_past_it(run: Path) -> None:
    flip(run / name(40) / "model.safetensors")
    (run / name(60)).mkdir()
    (run / name(60) / "model.safetensors").write_bytes(b"half")
    for other in ("checkpoint_of_mine", "tensorboard"):
        (run / other).mkdir()
    keeper = Keeper(str(run))
    keeper.keep(35, contents(35), wait=True)
    keeper.close()
    assert kept(run) == [name(10), name(20), name(30), name(35), "checkpoint_of_mine"]
    assert (run / "tensorboard").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_unasked(run: Path) -> None:
    for step in (10, 20, 30, 40):
        flip(run / name(step) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of its 4 checkpoints can be used; start a new run"):
        newest(str(run))


def test_a_run_whose_first_checkpoint_was_torn_starts_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / name(10)).mkdir()
    (tmp_path / name(10) / "model.safetensors").write_bytes(b"half")
    assert newest(str(tmp_path)) is None
    assert newest(str(tmp_path / "nothing")) is None
    with pytest.raises(CheckpointError, match="a run that has finished an epoch"):
        checkpoints.best(str(tmp_path))


def test_a_run_in_its_first_epoch_has_no_best_yet(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path))
    for step in (10, 20, 30):
        keeper.keep(step, contents(step), wait=True)
    keeper.close()
    assert kept(tmp_path) == [name(20), name(30)]
    with pytest.raises(CheckpointError, match="a run that has finished an epoch"):
        checkpoints.best(str(tmp_path))


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow past this, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_what_was_good_stays(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = contents(50, 0.9)
    keeper = Keeper(str(run))
    with files_of_at_most(len(files["model.safetensors"]) - 1):
        with pytest.raises(
            StorageError, match=rf"{run}/{name(50)}: cannot be written \(.*File too large.*\); make room"
        ):
            keeper.keep(50, files, wait=True)
        assert kept(run) == [name(10), name(20), name(30), name(40)]
        keeper.keep(50, files, wait=False)  # in the middle of an epoch it is only told
        keeper.close()
    assert kept(run) == [name(10), name(20), name(30), name(40)]
    (message,) = [message for message in caplog.messages if "no checkpoint in the middle" in message]
    assert "cannot be written" in message
    found = newest(str(run))
    assert found is not None
    assert found[2].step == 40


def test_a_storage_that_is_too_slow_costs_a_checkpoint_and_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    class Slow(dict[str, bytes]):
        def items(self) -> Any:
            assert gate.wait(60)
            return super().items()

    keeper = Keeper(str(tmp_path))
    keeper.keep(10, Slow(contents(10)), wait=False)
    keeper.keep(20, contents(20), wait=False)
    assert caplog.messages == [f"step 20: no checkpoint, since {tmp_path} still takes the one before"]
    gate.set()
    keeper.keep(30, contents(30), wait=True)
    keeper.close()
    assert kept(tmp_path) == [name(10), name(30)]


class Refusing(dict[str, bytes]):
    """Files of a checkpoint whose storage refuses them at first."""

    def __init__(self, files: dict[str, bytes], errors: list[OSError]) -> None:
        super().__init__(files)
        self.errors = errors

    def items(self) -> Any:
        if self.errors:
            raise self.errors.pop()
        return super().items()


BUSY = "AWS Error SLOW_DOWN during CreateMultipartUpload operation: Please reduce your request rate."


def test_an_object_store_that_refuses_at_the_end_of_an_epoch_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)
    keeper = Keeper(str(tmp_path))
    keeper.keep(10, Refusing(contents(10, 0.5), [OSError(BUSY), OSError(BUSY)]), wait=True)
    assert caplog.messages == [f"{tmp_path}/{name(10)}: the storage refuses, trying again ({BUSY})"] * 2
    assert kept(tmp_path) == [name(10)]
    with pytest.raises(OSError, match="Input/output error"):  # a disk that fails will fail again
        keeper.keep(20, Refusing(contents(20, 0.5), [OSError(errno.EIO, "Input/output error")]), wait=True)
    monkeypatch.setattr(storage, "PATIENCE_S", -1.0)
    message = rf"{name(20)}: cannot be written \({BUSY}\); wait until the storage answers, then go on with --resume"
    with pytest.raises(StorageError, match=message):
        keeper.keep(20, Refusing(contents(20, 0.5), [OSError(BUSY)]), wait=True)
    keeper.close()
    assert kept(tmp_path) == [name(10)]


@pytest.mark.parametrize("bad", ["", "a/b", ".", ".."])
def test_a_run_has_one_plain_name(tmp_path: Path, bad: str) -> None:
    with pytest.raises(RunError, match="must be one name, without slashes"):
        claim_run(TINY, str(tmp_path), bad, resume=False)


def test_a_name_is_claimed_once(tmp_path: Path) -> None:
    assert claim_run(TINY, str(tmp_path), "new", resume=False) == str(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
    with pytest.raises(RunError, match=r"--name new: .* is in use; choose another name, or go on with it by --resume"):
        claim_run(TINY, str(tmp_path), "new", resume=False)
    assert claim_run(TINY, str(tmp_path), "new", resume=True) == str(tmp_path / "new")


def test_a_directory_left_empty_by_a_kill_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    claim_run(TINY, str(tmp_path), "new", resume=False)


def test_resume_needs_a_run_and_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run .*; leave out --resume to start it"):
        claim_run(TINY, str(tmp_path), "new", resume=True)
    assert list(tmp_path.iterdir()) == []
    claim_run(TINY, str(tmp_path), "new", resume=False)
    other = TINY.model_copy(update={"model": TINY.model.model_copy(update={"rnn_size": 64})})
    with pytest.raises(RunError, match=r"was started with model\.rnn_size=32, not 64"):
        claim_run(other, str(tmp_path), "new", resume=True)
    cut(tmp_path / "new" / "config.json")
    with pytest.raises(RunError, match=r"new/config\.json: Invalid JSON: .*; start a new run"):
        claim_run(TINY, str(tmp_path), "new", resume=True)


def test_a_place_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--storage-path .*/file: cannot write there \(.*\); choose another place"):
        claim_run(TINY, str(tmp_path / "file"), "new", resume=False)
    with (
        files_of_at_most(10),
        pytest.raises(StorageError, match=r"cannot be written .*; make room there, then try again"),
    ):
        claim_run(TINY, str(tmp_path), "new", resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_remembers_what_it_was_started_with(tmp_path: Path) -> None:
    first = claim_run(TINY, str(tmp_path), "first", resume=False)
    assert started_with(first) == (None, [])
    origin, teachers = "/runs/first/checkpoint_000000010", ["/runs/a/checkpoint_000000010", "s3://b/checkpoint"]
    second = claim_run(TINY, str(tmp_path), "second", resume=False, from_checkpoint=origin, teachers=teachers)
    assert started_with(second) == (origin, teachers)
    third = claim_run(TINY, str(tmp_path), "third", resume=False, teachers=teachers)
    assert started_with(third) == (None, teachers)


def test_a_run_goes_on_with_its_own_drawings_only(run: Path) -> None:
    def shards(classes: list[str], train: int) -> Any:
        splits = {**DATA["splits"], "train": train}
        return SimpleNamespace(
            uri="/data", classes=classes, manifest=SimpleNamespace(provenance={"source": "generated"}, splits=splits)
        )

    check_data(str(run), shards(CLASSES, 8))
    with pytest.raises(RunError, match=rf"{name(40)} was made of other drawings than /data; name the data that"):
        check_data(str(run), shards(CLASSES, 9))
    with pytest.raises(RunError, match="was made of other drawings"):
        check_data(str(run), shards(["ant", "bat", "dog"], 8))


def test_a_checkpoint_whose_metrics_are_not_finite_can_be_read(tmp_path: Path) -> None:
    files = contents(10, float("nan"))
    assert "NaN" in files["meta.json"].decode()
    checkpoints.write(str(tmp_path / name(10)), files)
    found = newest(str(tmp_path))
    assert found is not None
    assert json.dumps(found[2].metrics) == '{"val_top1": NaN}'
