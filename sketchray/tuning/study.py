"""The study: what a sweep has tried and what came of it, in Optuna's storage, which is its only memory.

By default that is a journal in the sweep's directory, else whatever `--optuna-storage` names. A sweep that was killed
goes on from there: nothing that Ray Tune remembers is read again.

How a trial ended is its `fate`:

    finished   it trained to the end                         COMPLETE in Optuna
    stopped    ASHA stopped it                               PRUNED; with two objectives COMPLETE
    timed out  the time of the whole sweep was over          the same, or FAIL before its first epoch
    failed     it raised, its loss was NaN, or it was killed FAIL
    cut off    the sweep died under it; it is proposed again FAIL
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from sketchray.errors import RunError, first_line
from sketchray.storage import child, open_filesystem
from sketchray.tuning.space import PRESETS, Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"
SPEED = "drawings_per_s"  # the second objective, among a trial's notes
FINISHED, STOPPED, TIMED_OUT, FAILED, CUT_OFF = "finished", "stopped", "timed out", "failed", "cut off"


class Journal:
    """Optuna's journal of a sweep: the file itself on a disk, a copy of a local one on other storage.

    Args:
        run: directory or URI of the sweep.
        mend: makes good what a kill left; for the one who goes on with the sweep.
    """

    def __init__(self, run: str, *, mend: bool = False) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.filesystem, self.path = open_filesystem(child(run, JOURNAL))
        self.mirror: tempfile.TemporaryDirectory[str] | None = None
        self.file = Path(self.path)
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            self.mirror = tempfile.TemporaryDirectory()
            self.file = Path(self.mirror.name, JOURNAL)
            if self.filesystem.get_file_info(self.path).type == pafs.FileType.File:
                with self.filesystem.open_input_stream(self.path) as stream:
                    self.file.write_bytes(stream.read())
        if mend and self.file.exists():
            _mend(self.file)
        lock = JournalFileOpenLock(str(self.file))  # the other kind needs symbolic links
        self.storage = JournalStorage(JournalFileBackend(str(self.file), lock))

    def publish(self) -> None:
        """Copies the journal to where the sweep is, if that is elsewhere."""
        if self.mirror is not None:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(self.file.read_bytes())


def _mend(file: Path) -> None:
    """Cuts off what a kill left of a line: whatever came after it could not be read."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.write_bytes(content[:whole])
    with contextlib.suppress(FileNotFoundError):
        Path(f"{file}.lock").unlink()  # of a process that is gone; one sweep at a time writes here


def open_study(
    run: str, name: str, *, url: str | None, seed: int, sampler: str, resume: bool, pareto: bool = False
) -> tuple["optuna.Study", Callable[[], None]]:
    """Returns the study of a sweep, and what publishes a change of it.

    Args:
        run: directory or URI of the sweep.
        name: of the study.
        url: of an Optuna storage; None is the journal.
        seed: of the proposals; a sweep that goes on does not repeat them.
        sampler: `tpe` or `random`.
        resume: whether the study may be there already.
        pareto: whether it has two objectives, accuracy and speed.

    Raises:
        RunError: the storage cannot be opened, or has a study of that name that is not to be resumed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = Journal(run, mend=resume) if url is None else None
    try:
        storage: Any = journal.storage if journal else optuna.storages.get_storage(url)
        known = {study.study_name for study in storage.get_all_studies()}
    except Exception as error:  # whatever the driver of a database raises
        raise RunError(
            f"--optuna-storage {url or run}: cannot be opened ({first_line(error)}); name another"
        ) from error
    if name in known and not resume:
        raise RunError(
            f"--optuna-storage {url}: it has a study {name!r} already; choose another --name, or --resume it"
        )
    directions = [optuna.study.StudyDirection.MAXIMIZE] * (1 + pareto)
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    seed += len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if sampler == "random"
            else optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        )
    return study, journal.publish if journal else _nothing


def _nothing() -> None:
    """A database needs no copy."""


def prepare(study: "optuna.Study", space: Space, *, presets: bool) -> None:
    """Lets what was cut off be proposed again, and then the presets of the space that never were.

    Each once, however often a sweep dies.
    """
    import optuna
    from optuna.trial import TrialState

    again = {trial.user_attrs.get("again") for trial in study.get_trials(deepcopy=False)}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        choices = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if choices and trial.number not in again:
            kept = {key: value for key, value in trial.user_attrs.items() if key in ("preset", "directory")}
            before = {str(step): value for step, value in trial.intermediate_values.items()}
            study.enqueue_trial(choices, user_attrs={**kept, "again": trial.number, "before": before})
        # Optuna lets no one write to a trial that has ended, so its fate comes first.
        optuna.trial.Trial(study, trial._trial_id).set_user_attr("fate", CUT_OFF)
        study.tell(trial.number, state=TrialState.FAIL)
    known = {trial.user_attrs.get("preset") for trial in study.get_trials(deepcopy=False)}
    for name in PRESETS if presets else ():
        preset = space.preset(name)
        if preset is not None and name not in known:
            study.enqueue_trial(preset, user_attrs={"preset": name})


def note_epoch(trial: "optuna.Trial", epoch: int, value: float) -> None:
    """Tells the study what a trial has reached.

    `Trial.report` refuses where there are two objectives, since Optuna's pruners know but one; the storage takes it.
    """
    trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)


def ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Returns the trials that are over and count: all but those that were cut off, which are proposed again."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.user_attrs.get("fate") != CUT_OFF
    ]


def front_of(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Returns the Pareto front of a study with two objectives, the most accurate first."""
    return sorted(study.best_trials, key=lambda trial: trial.values, reverse=True)
