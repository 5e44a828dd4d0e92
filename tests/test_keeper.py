"""A run has one job: the later one has it, and the one before stops. No Ray."""

import errno
from pathlib import Path

import pytest
from test_runs import contents, kept, name

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError, StorageError
from sketchray.keeper import Keeper
from sketchray.owner import OWNER, Claim, claim


def test_the_job_that_took_a_run_over_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = str(tmp_path)
    refused = rf"{tmp_path}: another job goes on .* \(process \d+ on .+\), so this one stops"
    early = claim(run)
    early.take()
    early.take()  # its workers start anew
    beside = claim(run)
    later = claim(run)
    later.take()
    for outdated in (early, beside):  # one whose workers start anew, one that began before the later one had the run
        with pytest.raises(RunError, match=refused):
            outdated.take()
    (tmp_path / OWNER).unlink()  # by mistake
    later.check()
    later.take()
    first, second = Keeper(run, early), Keeper(run, later)
    second.keep(20, contents(20, 0.4), wait=True)
    with pytest.raises(RunError, match=refused):
        first.keep(30, contents(30, 0.5), wait=True)
    first = Keeper(run, early)
    first.keep(40, contents(40), wait=False)
    first.close()
    assert "no checkpoint in the middle of the epoch" in caplog.text
    with pytest.raises(RunError, match=refused):
        first.keep(41, contents(41), wait=False)
    second.keep(25, contents(25), wait=True)
    second.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(20), name(25), OWNER]


def test_a_job_that_is_overtaken_while_it_stores_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    early = claim(run)
    early.take()
    keeper = Keeper(run, early)
    for step in (10, 20):
        keeper.keep(step, contents(step), wait=True)
    write = checkpoints.write

    def slowly(uri: str, files: dict[str, bytes]) -> None:
        write(uri, files)
        monkeypatch.undo()
        claim(run).take()

    monkeypatch.setattr(checkpoints, "write", slowly)
    with pytest.raises(RunError, match="another job goes on here"):
        keeper.keep(30, contents(30), wait=True)
    assert kept(tmp_path) == [name(10), name(20), name(30)]
    (tmp_path / OWNER).write_text("{")
    with pytest.raises(RunError, match=r"owner\.json: damaged; remove it, then go on with --resume"):
        claim(run)


def test_a_checkpoint_that_is_stored_stays_where_older_ones_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("AWS Error SLOW_DOWN during DeleteObjects operation: Please reduce your request rate.")

    keeper = Keeper(str(tmp_path))
    for step in (10, 20, 30):
        keeper.keep(step, contents(step), wait=True)
    monkeypatch.setattr(Keeper, "_tidy", refuse)
    keeper.keep(40, contents(40), wait=True)
    assert kept(tmp_path) == [name(20), name(30), name(40)]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: older checkpoints are still there (AWS Error SLOW_DOWN")
    monkeypatch.undo()
    keeper.keep(50, contents(50), wait=True)
    keeper.close()
    assert kept(tmp_path) == [name(40), name(50)]


def test_a_disk_that_is_full_is_named_when_a_run_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); make room there"):
        Claim(str(tmp_path), "mark", "").take()
