"""The space, the study and the sums of a sweep, without a cluster."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from object_store import ObjectStore
from optuna.trial import TrialState
from ray import cloudpickle
from ray.exceptions import ActorDiedError

from sketchray.cluster import Cluster
from sketchray.errors import RunError
from sketchray.model import ModelConfig
from sketchray.owner import claim
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.shards import open_shards
from sketchray.tuning import SweepConfig, sweep_defaults
from sketchray.tuning.page import render
from sketchray.tuning.pareto import FrontASHA, Speedometer
from sketchray.tuning.plan import DRIVER_CPUS, share_out
from sketchray.tuning.scoreboard import Scoreboard
from sketchray.tuning.search import Bookkeeper, Entry, EpochASHA, StudySearch, reason_of
from sketchray.tuning.space import DIMENSIONS, PRESETS, Space, choices_of, count_parameters, needs, propose
from sketchray.tuning.study import CUT_OFF, JOURNAL, Journal, ended, front_of, note_epoch, open_study, prepare
from sketchray.tuning.trial import OneWorkerTrial


def make_space(**changes: Any) -> Space:
    return Space(**{"num_classes": 345, "num_epochs": 8, "seed": 0, "max_params": 2_500_000, **changes})


def test_a_thousand_random_samples_are_valid_and_within_the_budget() -> None:
    space, source = make_space(max_params=900_000), random.Random(1)
    configs = [space.draw(source) for _ in range(1000)]
    sizes = [count_parameters(config.model, 345) for config in configs]
    assert max(sizes) <= 900_000
    assert max(sizes) > 800_000  # the budget is used
    assert len({config.model_dump_json() for config in configs}) == 1000
    families = {
        (config.model.cell if config.model.rnn_layers else "", len(config.model.conv_channels)) for config in configs
    }
    assert families == {(cell, layers) for cell in ("", "lstm", "gru") for layers in range(5)} - {("", 0)}
    clipping = {(bool(config.clip_norm), bool(config.clip_value), bool(config.clip_adaptive)) for config in configs}
    assert clipping == {(False, False, False), (True, False, False), (False, True, False), (False, False, True)}


class Asked(dict[str, Any]):
    """Choices that know which were asked for."""

    def __init__(self, choices: dict[str, Any]) -> None:
        super().__init__(choices)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def test_every_name_is_asked_for_under_the_condition_that_is_told() -> None:
    source, seen = random.Random(0), set()
    space = make_space()
    for _ in range(300):
        choices = choices_of(space.draw(source))
        asked = Asked(choices)
        propose(asked.__getitem__)
        seen |= asked.names
        for name in asked.names:
            condition = needs(name)
            assert condition is None or choices[condition[0]] in condition[1]
    default = {name for name in DIMENSIONS if not name.endswith((".4", ".5", ".6", ".7"))}
    assert seen == default  # a fifth convolution only if users ask for more


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_are_in_the_space(name: str) -> None:
    space = make_space()
    study = optuna.create_study()
    choices = space.preset(name)
    assert choices is not None
    study.enqueue_trial(choices)
    assert space.suggest(study.ask()) == RECIPES[name].model_copy(update={"num_epochs": 8})


@pytest.mark.parametrize(
    ("fix", "presets", "expected"),
    [
        (["model.cell=lstm"], {"base", "student", "homl", "tutorial", "seed"}, {"model.cell": "lstm"}),
        (["model.rnn_layers=0"], {"conv1d"}, {"family": "conv"}),
        (["batch_size=64", "lr=1e-3"], set(PRESETS), {"batch_size": 64, "lr": 1e-3}),
        (["clip_value=0.1"], set(PRESETS), {"clipping": "value", "clip_value": 0.1, "clip_norm": 0.0}),
        (["model.pooling=sum"], {"tutorial"}, {"model.pooling": "sum"}),
        (["model.conv_channels=[64,96]"], set(), {"conv_layers": 2, "model.conv_channels": (64, 96)}),
        (["model.conv_channels.1=48"], set(), {}),
        (["precision=bfloat16", "patience=2"], set(PRESETS), {"precision": "bfloat16", "patience": 2}),
    ],
)  # fmt: skip
def test_a_fix_holds_for_every_sample_and_preset(fix: list[str], presets: set[str], expected: dict[str, Any]) -> None:
    space, source = make_space(fix=fix), random.Random(2)
    for _ in range(100):
        config = space.draw(source)
        assert choices_of(config).items() >= expected.items()
        assert (
            len(config.model.conv_channels) < 2
            or "conv_channels.1" not in fix[0]
            or config.model.conv_channels[1] == 48
        )
    assert {name for name in PRESETS if space.preset(name) is not None} == presets


def test_a_file_overrides_choices_and_ranges() -> None:
    overrides = {"model.rnn_size": [8, 512], "lr": {"low": 0.5, "high": 0.6}, "clipping": "none", "conv_layers": [6]}
    space, source = make_space(overrides=overrides), random.Random(3)
    configs = [space.draw(source) for _ in range(200)]
    assert all(0.5 <= config.lr <= 0.6 and not config.clip_norm for config in configs)
    assert {config.model.rnn_size for config in configs if config.model.rnn_layers} == {8, 512}
    assert {len(config.model.conv_channels) for config in configs} == {0, 6}
    assert not any(space.preset(name) for name in PRESETS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fix": ["model.cell"]}, "--fix model.cell: expected name=value"),
        ({"fix": ["cell=lstm"]}, "--fix cell: no such name"),
        ({"fix": ["seed=3"]}, "--fix seed: this is for --seed"),
        ({"fix": ["train_split=all"]}, "--fix train_split: this is for nothing else"),
        ({"fix": ["family=conv", "model.cell=lstm"]}, "--fix model.cell: this is for family=rnn or conv_rnn"),
        ({"fix": ["model.cell=rnn"]}, "Input should be 'lstm' or 'gru'"),
        ({"fix": ["lr=0"]}, "greater than 0"),
        ({"overrides": {"modle.cell": ["gru"]}}, "modle.cell: no such name in the space"),
        ({"overrides": {"lr": {"low": 1}}}, "lr: expected a list of choices or"),
        ({"overrides": {"lr": {"low": 1, "high": 0.1}}}, "lr: low and high must be numbers, the lower one first"),
        ({"overrides": {"lr": {"low": 0, "high": 1, "log": True}}}, "lr: a logarithmic range must begin above 0"),
        ({"overrides": {"conv_layers": [9]}}, "conv_layers: at most 8"),
        ({"max_params": 1000}, "--max-params 1,000: the smallest model of the space has"),
    ],
)
def test_what_is_not_possible_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_space(**changes)


def search_of(run: Path, *, resume: bool = False, url: str | None = None) -> StudySearch:
    """What a driver opens when it starts, and when it goes on."""
    space = make_space(max_params=350_000)
    study, publish = open_study(str(run), "s", url=url, seed=0, sampler="tpe", resume=resume)
    prepare(study, space, presets=True)
    return StudySearch(study, space, publish)


@pytest.mark.parametrize("url", [None, "sqlite:///{run}/optuna.db"])
def test_what_a_dead_sweep_left_is_proposed_again_and_presets_once(tmp_path: Path, url: str | None) -> None:
    url = url and url.format(run=tmp_path)
    search = search_of(tmp_path, url=url)
    first = search.suggest("a")
    search.asked[0].report(0.5, 1)
    second = search.suggest("b")
    search.study.tell(1, 0.25)
    third = search.suggest("c")
    assert [search.study.trials[number].user_attrs.get("preset") for number in range(3)] == ["homl", None, None]
    if url is None:
        with (tmp_path / JOURNAL).open("a") as journal:
            journal.write('{"op_code": 4, "torn')  # by the kill
        (tmp_path / f"{JOURNAL}.lock").touch()

    again = search_of(tmp_path, resume=True, url=url)
    again = search_of(tmp_path, resume=True, url=url)  # it may die at once
    assert [trial.number for trial in ended(again.study)] == [1]
    states = [trial.state for trial in again.study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING, TrialState.WAITING]
    assert [again.study.trials[number].user_attrs["fate"] for number in (0, 2)] == [CUT_OFF, CUT_OFF]
    for before, number, told in ((first, 3, 1), (third, 4, 0)):
        proposal = again.suggest(str(number))
        assert proposal == {
            **before,
            "number": number,
            "told": told,
        }  # and goes on in its directory
    assert again.study.trials[3].intermediate_values == {1: 0.5}
    assert [trial.user_attrs.get("preset") for trial in again.study.trials] == ["homl", None, None, "homl", None]
    new = again.suggest("new")
    assert new["directory"] == "trial_00005"
    assert new["config"] not in (first["config"], second["config"], third["config"])


def test_a_study_is_not_taken_over_by_chance(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    search_of(tmp_path, url=url)
    with pytest.raises(RunError, match=r"it has a study 's' already; choose another --name, or --resume it"):
        search_of(tmp_path, url=url)
    with pytest.raises(RunError, match=r"sqlite:////nowhere/a\.db: cannot be opened"):
        search_of(tmp_path, url="sqlite:////nowhere/a.db")


def test_a_journal_on_s3_is_a_copy(store: ObjectStore) -> None:
    run = store.make_bucket("sweeps").format("one")
    journal = Journal(run)
    optuna.create_study(storage=journal.storage, study_name="s")
    journal.publish()
    again = Journal(run)
    assert [study.study_name for study in again.storage.get_all_studies()] == ["s"]


def test_asha_stops_who_lags_but_nobody_behind_the_last_epoch() -> None:
    study = optuna.create_study(direction="maximize")
    for values in ([0.6, 0.7, 0.8], [0.5, 0.6, 0.7], [0.4]):
        trial = study.ask()
        for epoch, value in enumerate(values, 1):
            trial.report(value, epoch)
        study.tell(trial, values[-1])
    for past, fate in ((study.trials, "STOP"), ([], "CONTINUE")):
        scheduler = EpochASHA(3, 1, 3, past)
        trial: Any = type("Trial", (), {"trial_id": "new", "config": {"number": 7}})
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        assert scheduler.on_trial_result(None, trial, {"epoch": 3.0, "val_top1": 0.0}) == "CONTINUE"
        assert scheduler.on_trial_result(None, trial, {"epoch": 1.0, "val_top1": 0.3}) == fate
        assert scheduler.stopped == ({7} if fate == "STOP" else set())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ActorDiedError(), "its process died: killed, or out of memory (ActorDiedError); Ray's logs may say more"),
        (RunError("the loss became NaN or infinite in step 3 on rank 0; lower it\nmore"), "the loss became NaN"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_trial_died_of_is_told_in_a_line(tmp_path: Path, error: Exception, reason: str) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    trial: Any = type("Trial", (), {"pickled_error_file": str(file)})
    assert reason_of(trial).startswith(reason)
    assert "\n" not in reason_of(trial)


def test_with_two_objectives_a_trial_is_stopped_only_for_those_at_least_as_fast() -> None:
    speeds = {1: 100.0, 2: 200.0, 3: 50.0, 4: 300.0, 5: 100.0}
    scheduler = FrontASHA(4, 1, 3, speeds=speeds)
    fates = {}
    for number, value in ((1, 0.6), (2, 0.5), (3, 0.55), (4, 0.1), (5, 0.3)):
        trial: Any = type("Trial", (), {"trial_id": str(number), "config": {"number": number}})
        fates[number] = scheduler.on_trial_result(None, trial, {"epoch": 1.0, "val_top1": value})
        assert scheduler.on_trial_result(None, trial, {"epoch": 2.0, "val_top1": 0.0}) == "CONTINUE"  # between rungs
    # 3 is slower than both before it, one of which is better; nobody is as fast as 4; 1 and 2 are no slower than 5.
    assert fates == {1: "CONTINUE", 2: "CONTINUE", 3: "STOP", 4: "CONTINUE", 5: "STOP"}
    assert scheduler.stopped == {3, 5}

    # One that goes on knows of the trials before.
    study = optuna.create_study(directions=["maximize", "maximize"])
    for value in (0.6, 0.5):
        trial = study.ask()
        note_epoch(trial, 1, value)
        study.tell(trial, [value, 100.0])
    again = FrontASHA(4, 1, 3, study.trials, speeds={0: 100.0, 1: 100.0, 7: 90.0, 8: 110.0})
    for number, fate in ((7, "STOP"), (8, "CONTINUE")):
        trial = type("Trial", (), {"trial_id": str(number), "config": {"number": number}})
        assert again.on_trial_result(None, trial, {"epoch": 1.0, "val_top1": 0.3}) == fate
    assert again.stopped == {7}


def test_the_front_is_who_is_beaten_by_nobody_in_both() -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    for values in ((0.7, 10.0), (0.7, 20.0), (0.6, 15.0), (0.5, 40.0), (0.5, 30.0), (0.4, 41.0)):
        trial = study.ask()
        note_epoch(trial, 1, values[0])
        trial.set_user_attr("drawings_per_s", values[1])
        study.tell(trial, values)
    study.tell(study.ask(), state=TrialState.FAIL)
    assert [trial.number for trial in front_of(study)] == [1, 3, 5]


def test_a_larger_model_is_slower(doodle_shards: str) -> None:
    threads = torch.get_num_threads()
    measure = Speedometer(open_shards(doodle_shards))
    speeds = [
        measure(TrainConfig(model=ModelConfig(conv_channels=(), conv_kernels=(), conv_strides=(), rnn_size=size)))
        for size in (16, 256)
    ]
    assert speeds[0] > 2 * speeds[1] > 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("cpus", "workers", "asked", "concurrent", "each"),
    [
        (2, 1, None, 2, 1.0),
        (2, 1, 1, 1, 1.0),
        (2, 2, None, 1, (1 - DRIVER_CPUS) / 2),
        (8, 2, None, 4, (7 - 4 * DRIVER_CPUS) / 8),
        (8, 2, 2, 2, 1.0),
    ],
)
def test_the_sum_fits_the_cluster(cpus: int, workers: int, asked: int | None, concurrent: int, each: float) -> None:
    found, worker = share_out(Cluster(cpus, 0), workers, asked, 40)
    assert found == concurrent
    assert worker == {"CPU": pytest.approx(each, abs=1e-3)}
    beside = 1 + concurrent * DRIVER_CPUS if workers > 1 else 0
    assert worker["CPU"] * workers * concurrent + beside <= cpus


@pytest.mark.parametrize(
    ("cluster", "workers", "asked", "message"),
    [
        (Cluster(4, 0), 2, 3, "x 2 workers = 6 CPUs, 1 CPU for Ray Data and 3 drivers are more than the cluster's 4"),
        (Cluster(4, 0), 1, 5, "5 trials x 1 workers = 5 CPUs are more than the cluster's 4 CPUs; ask for at most 4"),
        (Cluster(4, 0), 5, None, "--num-workers 5: more workers than the cluster has CPUs"),
        (Cluster(4, 0), 1, 0, "--max-concurrent-trials 0: must be at least 1"),
    ],
)  # fmt: skip
def test_what_can_never_be_scheduled_is_refused(cluster: Cluster, workers: int, asked: int, message: str) -> None:
    with pytest.raises(RunError, match=message):
        share_out(cluster, workers, asked, 40)


def test_the_scoreboard_stays_small_and_shows_the_running_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    board = Scoreboard(
        num_samples=50, num_epochs=8, concurrent=2, before={"finished": 3}, best_before=0.4, time_budget_s=90
    )
    board.show([])
    assert capsys.readouterr().err == ""
    what = (
        "conv 128/192/256 + 1 bilstm 256, lr 0.003, clip norm 1, batch 256, and more than fits on a line of a terminal"
    )
    entries = [
        Entry(number, what, "finished", {1: number / 100, 2: number / 200}, seconds=60) for number in range(3, 33)
    ]
    entries += [
        Entry(33, what),
        Entry(34, what, "failed", reason="the loss became NaN"),
        Entry(35, what, "stopped", {1: 0.01}),
    ]
    board.show(entries)
    board.show(entries)  # too early
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "trials 35/50: 33 finished, 1 failed, 1 stopped; 1 running; best val_top1 40.0%; 0:00 gone, about 1:30 left"
    )
    assert lines[2].startswith("     33  running     0/8       -      -   conv 128/192/256")
    assert lines[3].startswith("     32  finished    2/8   16.0%  32.0%   conv")
    assert lines[-1] == "     34  failed: the loss became NaN"
    assert len(lines) == 11
    assert max(map(len, lines)) <= 118


def test_a_resumed_sweep_has_the_flags_that_it_was_started_with(tmp_path: Path) -> None:
    flags = ["--storage-path", str(tmp_path), "--name", "a", "--resume", "--num-samples", "9"]
    assert sweep_defaults(flags) == {}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sweep.json").write_text('{"sweep": {"num_epochs": 3, "max_params": 5}}')
    assert sweep_defaults(flags) == {"sweep": SweepConfig(num_epochs=3, max_params=5)}
    assert sweep_defaults(["--name"]) == sweep_defaults(flags[:4]) == {}


def test_a_config_and_its_choices_say_the_same() -> None:
    config = TrainConfig()
    choices = choices_of(config)
    assert choices["family"] == "conv_rnn"
    assert choices["clipping"] == "norm"
    assert TrainConfig.model_validate(propose(choices.__getitem__)) == config


def test_a_sweep_that_another_job_resumes_tells_its_study_nothing_more(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    early = claim(str(tmp_path))
    early.take()
    search.check = early.check
    tidied: list[str] = []
    keeper = Bookkeeper(search, set(), lambda last: None, tidied.append)
    trial: Any = type("Trial", (), {"config": search.suggest("0"), "pickled_error_file": None})
    keeper.on_trial_result(0, [], trial, {"epoch": 1.0, "step": 9.0, "val_top1": 0.5})
    keeper.on_step_end(0, [])
    claim(str(tmp_path)).take()
    before = search.study.trials
    keeper.on_trial_result(0, [], trial, {"epoch": 2.0, "step": 18.0, "val_top1": 0.6})
    keeper.on_trial_error(0, [], trial)
    with pytest.raises(RunError, match="another job goes on here"):
        keeper.on_step_end(0, [])
    with pytest.raises(RunError, match="another job goes on here"):
        search.suggest("1")
    with pytest.raises(RunError, match="another job goes on here"):  # as where the time of the sweep is over
        keeper.close()
    assert search.study.trials == before
    assert tidied == []


def test_the_page_shows_what_was_tried_and_loads_nothing(tmp_path: Path) -> None:
    search = search_of(tmp_path)
    tidied: list[str] = []
    keeper = Bookkeeper(search, {2, 5}, lambda last: None, tidied.append)
    source = random.Random(0)
    for number in range(12):
        trial: Any = type("Trial", (), {"config": search.suggest(str(number)), "pickled_error_file": None})
        for epoch in (1, 2, 3) if number not in (2, 5, 9) else (1,):
            value = source.random() / 2
            keeper.on_trial_result(0, [], trial, {"epoch": float(epoch), "step": 9.0, "val_top1": value})
        if number == 9:
            keeper.on_trial_error(0, [], trial)
        elif number < 11:
            keeper.on_trial_complete(0, [], trial)
    keeper.close()
    fates = [trial.user_attrs["fate"] for trial in search.study.trials]
    assert fates == [
        *("finished", "finished", "stopped", "finished", "finished", "stopped"),
        *("finished", "finished", "finished", "failed", "finished", "timed out"),
    ]
    assert tidied == [f"trial_{number:05d}" for number in range(12)]
    page = render(search.study, SweepConfig(num_epochs=3), search.space, "<script>alert(1)</script>")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    best = max(trial.value for trial in search.study.trials if trial.value is not None)
    assert f"<dd>{best:.1%}<small>of the whole valid split" in page
    assert "4 epochs of 34 (12%) were not trained" in page
    assert page.count('<div class="slices">') == page.count('<figure class="chart parallel">') == 1
    assert page.count("<g><title>trial ") == 2 * 12  # curves and parallel coordinates
    assert '<tr><th scope="row">9</th><td>no message</td></tr>' in page
    batch_size = search.study.best_trial.user_attrs["config"]["batch_size"]
    assert f'<tr><th scope="row">batch_size</th><td>{batch_size}</td></tr>' in page


def test_a_trial_that_was_cut_off_tells_what_nobody_heard_of(doodle_shards: str, tmp_path: Path) -> None:
    """As a kill leaves it between a checkpoint and the study: no matter behind which epoch."""
    config = make_space(num_classes=10, num_epochs=2, fix=["family=conv", "conv_layers=1", "batch_size=64"])
    proposal = {"config": config.draw(random.Random(0)).model_dump(mode="json"), "directory": "one", "told": 0}

    def begin(told: int) -> OneWorkerTrial:
        trial = OneWorkerTrial.__new__(OneWorkerTrial)  # Ray Tune's own set-up needs its session
        trial.setup({**proposal, "told": told}, data=doodle_shards, claim=claim(str(tmp_path)), threads=1)
        return trial

    trial = begin(0)
    first = trial.step()
    trial.cleanup()
    assert (first["epoch"], first["done"]) == (1, False)
    trial = begin(0)
    again, second = trial.step(), trial.step()
    assert again == first
    assert (second["epoch"], second["done"]) == (2, True)
    trial.cleanup()
    assert begin(1).step() == begin(2).step() == second
    assert [step["done"] for step in (again, second)] == [False, True]
