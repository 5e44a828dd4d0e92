"""Training on Ray Train: workers agree, runs resume exactly, names are guarded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from conftest import ROOT, TINY
from safetensors.torch import load_file

from sketchray import checkpoint as checkpoints
from sketchray.augment import AugmentConfig
from sketchray.cluster import Cluster, cpus_per_worker, tell_if_busy
from sketchray.engine import Learner
from sketchray.errors import CheckpointError, DataError, RunError
from sketchray.feed import EvalFeed, TrainFeed, batches
from sketchray.shards import open_shards
from sketchray.training import claim_run, make_meta, run_epoch, train

# No batch statistics, dropout or augmentation: what one worker does and what two do is the same sum.
EXACT = TINY.model_copy(
    update={
        "augment": AugmentConfig(),
        "model": TINY.model.model_copy(update={"dropout": 0.0, "conv_norm": "layer"}),
        # AdamW would make noise of rounding where a gradient is nearly 0.
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "lr": 0.1,
    }
)


def final_weights(run: str) -> dict[str, torch.Tensor]:
    """The weights of a run's last epoch."""
    found = [path.parent for path in Path(run).glob("*/meta.json")]
    last = max(found, key=lambda path: checkpoints.read_meta(str(path)).epoch)
    return load_file(last / "model.safetensors")


def test_a_run_leaves_a_best_checkpoint_with_its_provenance(run: str, doodle_shards: str) -> None:
    model, meta = checkpoints.load(checkpoints.best(run))
    assert meta.classes == open_shards(doodle_shards).classes
    assert meta.data["synthetic"] is True
    assert meta.metrics["val_top1"] > 0.3  # chance is 0.1
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert {path.name for path in Path(checkpoints.best(run)).iterdir()} == {
        "model.safetensors",
        "meta.json",
        "state.pt",
    }


def test_two_workers_learn_what_one_does(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    weights, metrics = [], []
    for workers in (1, 2):
        name = f"workers{workers}"
        result = train(EXACT, data=doodle_shards, storage_path=str(tmp_path), name=name, num_workers=workers)
        weights.append(final_weights(result["run"]))
        metrics.append(result["metrics"])
    for name, tensor in weights[0].items():
        # The batches are the same; float32 sums in another order drift apart by rounding, step after step.
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-5)
    assert metrics[0]["val_loss"] == pytest.approx(metrics[1]["val_loss"], abs=1e-4)


def test_metrics_do_not_depend_on_ranks_or_batch_size(run: str, doodle_shards: str) -> None:
    rows = open_shards(doodle_shards).rows("valid")
    model, meta = checkpoints.load(checkpoints.best(run))
    learner = Learner(TINY, len(meta.classes), total_steps=1)
    learner.model.load_state_dict(model.state_dict())

    def sums(batch_size: int, world_size: int) -> torch.Tensor:
        feeds = [EvalFeed(rows, batch_size, rank, world_size) for rank in range(world_size)]
        return torch.stack([learner.evaluate(batches(feed)) for feed in feeds]).sum(0)

    expected = sums(32, 1)
    for batch_size, world_size in ((1, 1), (7, 3), (256, 2)):
        found = sums(batch_size, world_size)
        assert found[[0, 2, 3]].tolist() == expected[[0, 2, 3]].tolist()
        # Loss and MAP@3 are float32 in a batch; their sums in another order differ by rounding.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected[0] == len(rows)


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(doodle_shards: str, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"num_epochs": 3})  # with dropout and augmentation
    shards = open_shards(doodle_shards)
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    valid = EvalFeed(shards.rows("valid"))

    def learner() -> Learner:
        return Learner(config, len(shards.classes), total_steps=feed.steps * 3)

    whole = learner()
    stream = batches(feed, range(3))
    for epoch in range(3):
        metrics = run_epoch(whole, feed, stream, valid, epoch)
        if epoch == 0:
            meta = make_meta(config, shards, metrics)
            checkpoints.save(tmp_path, whole.model.state_dict(), meta, whole.state_dict())
    resumed = learner()
    model, meta = checkpoints.load(str(tmp_path))
    resumed.load_state_dict(model.state_dict(), checkpoints.load_state(tmp_path))
    stream = batches(feed, range(meta.epoch, 3))
    for epoch in range(meta.epoch, 3):
        last = run_epoch(resumed, feed, stream, valid, epoch)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert last["val_loss"] == metrics["val_loss"]


def test_a_killed_job_goes_on_with_resume_and_ends_the_same(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    flags = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--preset", "homl", "--num-epochs", "3"]
    flags += ["--batch-size", "16", "--num-workers", "1"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}

    def command(name: str, *more: str) -> list[str]:
        return [sys.executable, str(ROOT / "jobs" / "train.py"), "--name", name, *more]

    subprocess.run(command("whole", *flags), env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        command("killed", *flags), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("*/meta.json")):
            assert time.monotonic() < deadline, "no checkpoint came"
            assert job.poll() is None, "the job ended before it was killed"
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
    places = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--num-workers", "1", "--resume"]
    done = subprocess.run(command("killed", *places), env=environment, check=True, capture_output=True, text=True)
    assert "going on after epoch" in done.stderr or "killed" in done.stdout
    whole, killed = final_weights(str(tmp_path / "whole")), final_weights(str(tmp_path / "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name


def test_a_name_in_use_needs_resume(run: str, doodle_shards: str) -> None:
    storage_path, name = str(Path(run).parent), Path(run).name
    before = sorted(path.name for path in Path(run).rglob("*"))
    with pytest.raises(RunError, match=r"--name tiny: .* is in use; choose another name, or go on with it by --resume"):
        train(TINY, data=doodle_shards, storage_path=storage_path, name=name)
    assert sorted(path.name for path in Path(run).rglob("*")) == before


def test_resume_needs_the_same_configuration_and_a_run(run: str, tmp_path: Path) -> None:
    other = TINY.model_copy(update={"model": TINY.model.model_copy(update={"rnn_size": 64})})
    with pytest.raises(RunError, match=r"was started with model\.rnn_size=32, not 64"):
        claim_run(other, str(Path(run).parent), Path(run).name, resume=True)
    with pytest.raises(RunError, match=r"there is no run .*; leave out --resume to start it"):
        claim_run(TINY, str(tmp_path), "new", resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_a_run_has_one_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="must be one name, without slashes"):
        claim_run(TINY, str(tmp_path), name, resume=False)


def test_a_nan_stops_the_run_and_names_the_step(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    wild = EXACT.model_copy(update={"lr": 1e30, "clip_norm": 0.0})
    with pytest.raises(RunError, match=r"became NaN or infinite in step \d+ on rank 0; try a lower --lr"):
        train(wild, data=doodle_shards, storage_path=str(tmp_path), name="wild")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.best(str(tmp_path / "wild"))


def test_bad_places_leave_nothing_behind(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such directory; make it with jobs/ingest\.py"):
        train(TINY, data=str(tmp_path / "nothing"), storage_path=str(tmp_path), name="a")
    with pytest.raises(RunError, match=r"--num-workers 16: more workers than the cluster has CPUs \(2\)"):
        train(TINY, data=doodle_shards, storage_path=str(tmp_path), name="a", num_workers=16)
    with pytest.raises(RunError, match=r"more workers than the cluster has GPUs \(0\)"):
        train(TINY, data=doodle_shards, storage_path=str(tmp_path), name="a", use_gpu=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cpus", "workers", "each"), [(2, 1, 1.0), (2, 2, 0.5), (4, 3, 1.0), (4, 4, 0.75), (3, 3, 0.666), (64, 8, 1.0)]
)
def test_workers_leave_a_cpu_to_ray_data(cpus: int, workers: int, each: float) -> None:
    assert cpus_per_worker(Cluster(cpus, 0), workers) == each
    assert cpus - workers * each >= 1


def test_impossible_sums_are_refused() -> None:
    with pytest.raises(RunError, match="must be at least 1"):
        cpus_per_worker(Cluster(4, 0), 0)
    with pytest.raises(RunError, match="start Ray with --num-cpus 2"):
        cpus_per_worker(Cluster(1, 0), 1)


def test_a_run_that_must_wait_says_for_what(cluster: str, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)  # what the test before held is given back a moment after it ends
    tell_if_busy(2.0)
    assert not caplog.messages
    tell_if_busy(2.0, 1.0)
    (message,) = caplog.messages
    assert message.startswith("waiting for 1 GPUs, of which 0 are free: the rest is held by other work")
