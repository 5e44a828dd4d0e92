"""Whole sweeps on the cluster: failed trials, a killed driver, several workers, and what is left afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState
from ray.util import placement_group_table
from ray.util.state import list_actors

from sketchray import checkpoint as checkpoints
from sketchray.errors import RunError
from sketchray.owner import claim
from sketchray.recipe import TrainConfig
from sketchray.tuning import SweepConfig, tune
from sketchray.tuning.study import CUT_OFF, Journal

SMALL = ("family=conv", "conv_layers=1", "batch_size=64", "augmentation=none", "clipping=none", "schedule=constant")
OF_RAY_DATA = ("_StatsActor", "_AutoscalingCoordinatorActor")  # one of each a cluster, from its first use on
WAIT_S = 120.0  # for a clean-up that happens behind our back, on a busy machine


def alive() -> set[str]:
    """Actors and placement groups of the cluster that are not gone."""
    actors = list_actors(filters=[("state", "!=", "DEAD")], limit=1000)
    groups = placement_group_table()
    return {
        *(f"{actor.class_name} {actor.actor_id}" for actor in actors if actor.class_name not in OF_RAY_DATA),
        *(f"placement group {key}" for key, group in groups.items() if group["state"] != "REMOVED"),
    }


def assert_nothing_is_left(before: set[str]) -> None:
    """Waits until what was started since is gone."""
    until = time.monotonic() + WAIT_S
    while alive() - before and time.monotonic() < until:
        time.sleep(0.5)
    assert alive() - before == set()


def study_of(run: Path) -> optuna.Study:
    """Opens what a sweep remembers, as `optuna-dashboard` does."""
    return optuna.load_study(study_name=run.name, storage=Journal(str(run)).storage)


@pytest.mark.timeout(900)  # of a machine that does other things too
def test_trials_fail_and_are_stopped_alone_and_leave_nothing(
    cluster: str, doodle_shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = alive()
    run = tmp_path / "sweep"
    sweep = SweepConfig(num_samples=3, num_epochs=20, sampler="random", seed=3)
    places: dict[str, Any] = {"data": doodle_shards, "storage_path": str(tmp_path), "name": "sweep"}
    space = {"lr": [1e-2, 1e-7, 1e30]}
    result = tune(sweep, **places, space=space, fix=SMALL, max_concurrent_trials=1)
    assert_nothing_is_left(before)
    trials = study_of(run).trials
    assert [trial.params["lr"] for trial in trials] == [1e-2, 1e-7, 1e30]  # of this seed
    assert [trial.user_attrs["fate"] for trial in trials] == ["finished", "stopped", "failed"]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [list(trial.intermediate_values) for trial in trials] == [list(range(1, 21)), [1], []]
    assert trials[2].user_attrs["reason"].startswith("the loss became NaN or infinite in step ")
    assert (result["trials"], result["stopped"], result["failed"]) == (3, 1, 1)
    assert result["metrics"]["val_top1"] == trials[0].value == max(trials[0].intermediate_values.values())
    assert TrainConfig.model_validate_json((run / "best.json").read_text()).lr == 1e-2
    for trial in trials[:2]:  # each is a run, of which the best checkpoint is left
        (left,) = (run / trial.user_attrs["directory"]).glob("checkpoint_*")
        value = checkpoints.read_meta(str(left)).metrics["val_top1"]
        assert value == max(trial.intermediate_values.values())
    page = (run / "sweep.html").read_text()
    assert "1 finished, 1 stopped, 1 failed" in page
    assert "19 epochs of 40 (48%) were not trained" in page
    shown = capfd.readouterr().err
    assert "trials 3/3: 1 finished, 1 stopped, 1 failed; 0 running; best val_top1" in shown
    assert "failed: the loss became NaN" in shown

    # A sweep that is over gets another trial, now of two workers, which is stopped by what the others reached.
    more = sweep.model_copy(update={"num_samples": 4})
    result = tune(more, **places, num_workers=2, resume=True)
    last = study_of(run).trials[3]
    assert (last.params["lr"], last.user_attrs["fate"], list(last.intermediate_values)) == (1e-7, "stopped", [1])
    assert (result["trials"], result["stopped"], result["failed"]) == (4, 2, 1)
    assert_nothing_is_left(before)


@pytest.mark.timeout(900)
def test_a_sweep_that_another_job_resumes_stops(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    before = alive()
    run = tmp_path / "twice"
    sweep = SweepConfig(num_samples=50, num_epochs=50, scheduler="none", presets=False)
    places: dict[str, Any] = {"data": doodle_shards, "storage_path": str(tmp_path), "name": "twice"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(tune, sweep, **places, fix=SMALL, max_concurrent_trials=1)
        until = time.monotonic() + 300
        while not list(run.glob("trial_*/checkpoint_*/meta.json")) and time.monotonic() < until and first.running():
            time.sleep(0.2)
        claim(str(run)).take()
        with pytest.raises(RunError, match=rf"^{run}: another job goes on here since .*, so this one stops"):
            first.result(300)
    assert not (run / "best.json").exists()
    assert study_of(run).trials[-1].state == TrialState.RUNNING  # for the other job to make good
    assert_nothing_is_left(before)


def start(data: str, storage_path: Path, address: str, *flags: str) -> "subprocess.Popen[str]":
    """Starts a sweep of four trials as a user does."""
    fixes = [word for fix in SMALL for word in ("--fix", fix)]
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--data", data, "--storage-path", str(storage_path)]
    command += ["--name", "killed", "--num-samples", "4", "--max-concurrent-trials", "1", *flags]
    begun = ["--num-epochs", "10", "--scheduler", "none", "--pareto", *fixes]
    return subprocess.Popen(
        command if "--resume" in flags else [*command, *begun],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    before = alive()
    run = tmp_path / "killed"
    first = start(doodle_shards, tmp_path, cluster)
    until = time.monotonic() + 300
    while time.monotonic() < until and first.poll() is None:
        if list(run.glob("trial_*")):
            first.send_signal(signal.SIGSTOP)  # so that what is seen is what the kill meets
            trials = study_of(run).trials
            if len(trials) > 1 and trials[-1].state == TrialState.RUNNING and trials[-1].intermediate_values:
                break
            first.send_signal(signal.SIGCONT)
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    _, shown = first.communicate()
    assert first.returncode == -signal.SIGKILL, shown
    dead = study_of(run).trials
    over = [trial.number for trial in dead if trial.state == TrialState.COMPLETE]
    assert 1 <= len(over) < 4
    assert dead[-1].state == TrialState.RUNNING

    again = start(doodle_shards, tmp_path, cluster, "--resume")
    output, shown = again.communicate(timeout=500)
    assert again.returncode == 0, shown
    result = json.loads(output.splitlines()[-1])
    assert (result["trials"], result["failed"]) == (4, 0)
    trials = study_of(run).trials
    assert [trial.state for trial in trials if trial.number in over] == [TrialState.COMPLETE] * len(over)
    assert trials[len(dead) - 1].user_attrs["fate"] == CUT_OFF
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(finished) == 4
    assert all(list(trial.intermediate_values) == list(range(1, 11)) for trial in finished)
    assert len({trial.user_attrs["directory"] for trial in finished}) == 4
    orphan = trials[len(dead) - 1]
    went_on = next(trial for trial in finished if trial.user_attrs.get("again") == orphan.number)
    assert went_on.params == orphan.params
    assert went_on.user_attrs["directory"] == orphan.user_attrs["directory"]
    assert went_on.intermediate_values.items() >= orphan.intermediate_values.items()
    # Its two objectives are those of the trials, and its front is the one that Optuna sees.
    assert all(trial.values == [trial.values[0], trial.user_attrs["drawings_per_s"]] for trial in finished)
    front = json.loads((run / "pareto.json").read_text())
    assert result["pareto"] == str(run / "pareto.json")
    assert {member["trial"] for member in front} == {trial.number for trial in study_of(run).best_trials}
    assert front[0]["val_top1"] == result["metrics"]["val_top1"] == max(trial.values[0] for trial in finished)
    assert checkpoints.read_meta(front[0]["checkpoint"]).metrics["val_top1"] == front[0]["val_top1"]
    assert "<h2>Accuracy beside speed</h2>" in (run / "sweep.html").read_text()
    assert_nothing_is_left(before)
