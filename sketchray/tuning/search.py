"""What stands between Ray Tune and the study: proposals one way, what came of them the other, and early stopping."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from sketchray.errors import Error, find_error, first_line, named_line
from sketchray.loop import METRIC
from sketchray.recipe import TrainConfig
from sketchray.tuning.space import Space, count_parameters
from sketchray.tuning.study import FAILED, FINISHED, SPEED, STOPPED, TIMED_OUT, ended, note_epoch
from sketchray.tuning.summary import summary

if TYPE_CHECKING:
    import optuna
    from ray.tune.experiment import Trial as TuneTrial

RUNNING = "running"


@dataclass
class Entry:
    """A trial of this sweep, as the scoreboard shows it.

    Attributes:
        number: in the study.
        what: the configuration in a few words.
        fate: `running`, or how it ended.
        values: `val_top1` by epoch.
        reason: why it failed.
        started: on this process's clock.
        seconds: that it took, once it is over.
        epochs: that it trained in this process's time.
    """

    number: int
    what: str
    fate: str = RUNNING
    values: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    epochs: int = 0


class StudySearch(Searcher):
    """Lets Ray Tune have what the study proposes. The study alone remembers; Ray Tune saves nothing of this.

    Args:
        study: Optuna's.
        space: what may be proposed.
        publish: is called after each change of the study.
        measure: drawings/s of a configuration, which are the second objective; without it there is one.
        check: raises where another job has the sweep; nothing is told to the study then.
    """

    def __init__(
        self,
        study: "optuna.Study",
        space: Space,
        publish: Callable[[], None],
        measure: Callable[[TrainConfig], float] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.study, self.space, self.publish, self.measure, self.check = study, space, publish, measure, check
        self.speeds = {trial.number: trial.user_attrs.get(SPEED, 0.0) for trial in study.get_trials(deepcopy=False)}
        self.asked: dict[int, optuna.Trial] = {}
        self.entries: dict[int, Entry] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Returns the next proposal: `config`, `directory`, the trial's `number`, and the last epoch `told` of it."""
        del trial_id
        self.check()
        trial = self.study.ask()
        config = self.space.suggest(trial)
        directory = str(trial.user_attrs.get("directory", f"trial_{trial.number:05d}"))
        before = {int(step): value for step, value in trial.user_attrs.get("before", {}).items()}
        for step, value in before.items():  # of a trial that was cut off
            note_epoch(trial, step, value)
        proposal: dict[str, Any] = {"config": config.model_dump(mode="json"), "directory": directory}
        for key, note in proposal.items():
            trial.set_user_attr(key, note)
        trial.set_user_attr("parameters", count_parameters(config.model, self.space.num_classes))
        if self.measure is not None:
            self.speeds[trial.number] = round(self.measure(config), 1)
            trial.set_user_attr(SPEED, self.speeds[trial.number])
        self.publish()
        entry = Entry(trial.number, summary(proposal["config"], trial.user_attrs.get("preset")))
        entry.values = before
        self.asked[trial.number], self.entries[trial.number] = trial, entry
        return {**proposal, "number": trial.number, "told": max(before, default=0)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `Bookkeeper` knows more of how a trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune pickles what it is given."""
        return {}


class EpochASHA(ASHAScheduler):
    """ASHA by epoch, that knows of the trials before a restart, and never stops a trial behind its last epoch.

    That ends by itself; and a Ray Train run that is stopped while it cleans up leaves its placement groups.

    Args:
        num_epochs: of a trial that is not stopped.
        grace_epochs: that each trial gets.
        reduction_factor: one in so many goes on at each rung.
        past: trials of the study that are over.
    """

    def __init__(
        self,
        num_epochs: int,
        grace_epochs: int,
        reduction_factor: int,
        past: "Sequence[optuna.trial.FrozenTrial]" = (),
    ) -> None:
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            max_t=num_epochs + 1,
            grace_period=min(grace_epochs, num_epochs),
            reduction_factor=reduction_factor,
        )
        self.num_epochs = num_epochs
        self.stopped: set[int] = set()
        for trial in past:
            known: Any = SimpleNamespace(trial_id=f"past {trial.number}", config={"number": trial.number})
            self.on_trial_add(cast(Any, None), known)
            for epoch, value in sorted(trial.intermediate_values.items()):
                self.on_trial_result(None, known, {"epoch": epoch, METRIC: value})
        self.stopped.clear()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial goes on."""
        if result["epoch"] >= self.num_epochs:
            return str(self.CONTINUE)
        action = str(super().on_trial_result(tune_controller, trial, result))
        if action == self.STOP:
            self.stopped.add(trial.config["number"])
        return action


class Bookkeeper(Callback):
    """Tells the study what comes of each trial, and the scoreboard.

    Args:
        search: knows the trials.
        stopped: numbers of those that ASHA stopped.
        show: shows the entries; called after each change, and once more with True in the end.
        tidy: of a trial that is over, clears its directory.
    """

    def __init__(
        self, search: StudySearch, stopped: set[int], show: Callable[[bool], None], tidy: Callable[[str], None]
    ) -> None:
        self.search, self.stopped, self.show, self.tidy = search, stopped, show, tidy
        self.error: Error | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune pickles what it is given."""
        return {}

    def on_step_end(self, iteration: int, trials: "list[TuneTrial]", **info: Any) -> None:
        """Ray Tune looked at what goes on."""
        self._raise()
        self.show(False)

    def _raise(self) -> None:
        """Raises what stops the sweep; not where it came, since Ray Tune takes that for a trial's failure."""
        if self.error is not None:
            raise self.error

    def _works(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Error as error:  # another job has the sweep, or its storage refuses
            self.error = error
        return self.error is None

    def on_trial_result(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is over."""
        if not self._works(self.search.check):
            return
        number, epoch = trial.config["number"], int(result["epoch"])
        entry = self.search.entries[number]
        if epoch not in entry.values:
            note_epoch(self.search.asked[number], epoch, result[METRIC])
            entry.epochs += 1
        entry.values[epoch] = result[METRIC]
        self._works(self.search.publish)

    def on_trial_complete(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        """A trial trained to the end, or was stopped."""
        number = trial.config["number"]
        self._close(number, STOPPED if number in self.stopped else FINISHED)

    def on_trial_error(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        """A trial failed, or its process died."""
        self._close(trial.config["number"], FAILED, reason_of(trial))

    def close(self) -> None:
        """Ends the trials that Ray Tune dropped without a word, since the time was over."""
        for number, entry in self.search.entries.items():
            if entry.fate == RUNNING:
                self._close(number, TIMED_OUT)
        self._raise()

    def _close(self, number: int, fate: str, reason: str = "") -> None:
        from optuna.trial import TrialState

        trial, entry = self.search.asked[number], self.search.entries[number]
        if not self._works(self.search.check):
            return
        entry.fate, entry.reason, entry.seconds = fate, reason, time.perf_counter() - entry.started
        notes = {"fate": fate, "reason": reason, "seconds": round(entry.seconds, 3)}
        for key, note in notes.items():
            trial.set_user_attr(key, note)
        if self.search.measure is not None and fate != FAILED and entry.values:
            # Whatever it has reached counts: of two objectives Optuna can use nothing that is pruned.
            self.search.study.tell(trial, [max(entry.values.values()), self.search.speeds[number]])
        elif fate == FINISHED and entry.values:
            self.search.study.tell(trial, max(entry.values.values()))
        elif fate in (STOPPED, TIMED_OUT) and entry.values:
            self.search.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.search.study.tell(trial, state=TrialState.FAIL)
        directory = str(trial.user_attrs["directory"])
        if self._works(self.search.publish) and self._works(lambda: self.tidy(directory)):
            self.show(False)


def reason_of(trial: "TuneTrial") -> str:
    """Returns in a line what a trial died of."""
    file = trial.pickled_error_file  # of the driver; the copy in the storage comes later
    if file is None or not Path(file).exists():
        return "no message"
    error: Exception = cloudpickle.loads(Path(file).read_bytes())
    known = find_error(error)
    if known is not None:
        return first_line(known)
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RayActorError | OutOfMemoryError):
        return f"its process died: killed, or out of memory ({type(cause).__name__}); Ray's logs may say more"
    return named_line(cause)


def past_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Returns the trials that a scheduler should know of."""
    return [trial for trial in ended(study) if trial.intermediate_values]
