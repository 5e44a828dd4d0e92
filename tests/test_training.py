"""Training on Ray Train: workers agree, runs resume exactly, names are guarded."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray
import torch
from conftest import ROOT, TINY
from safetensors.torch import load_file

from sketchray import checkpoint as checkpoints
from sketchray.augment import AugmentConfig
from sketchray.batch import Batch
from sketchray.cluster import Cluster, cpus_per_worker, node_cpus, tell_if_busy
from sketchray.engine import Learner
from sketchray.errors import DataError, RunError
from sketchray.feed import batches
from sketchray.loop import Loop, Metrics, gather_own, take_own
from sketchray.order import EvalFeed, TrainFeed
from sketchray.runs import make_meta
from sketchray.shards import open_shards
from sketchray.training import train

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
    """The weights of a run's last step."""
    return load_file(max(Path(run).glob("checkpoint_*")) / "model.safetensors")


def assert_equal(weights: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    """Fails unless they are the same, bit for bit."""
    assert weights.keys() == others.keys()
    different = [name for name, tensor in weights.items() if not torch.equal(tensor, others[name])]
    assert not different


def learned(metrics: Metrics) -> Metrics:
    """The metrics of an epoch that do not depend on how fast the machine is."""
    return {name: value for name, value in metrics.items() if name not in ("drawings_per_s", "waiting_share")}


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


def test_a_group_of_another_size_takes_over_what_each_rank_had() -> None:
    config = TINY.model_copy(update={"model": TINY.model.model_copy(update={"conv_norm": "batch"})})
    ranks = []
    for number in (1.0, 3.0):
        learner = Learner(config, 10, total_steps=1)
        learner.sums += number
        for buffer in learner.model.buffers():
            buffer.fill_(number)
        ranks += gather_own(learner)
    alone = Learner(config, 10, total_steps=1)
    take_own(alone, ranks)
    assert alone.sums.tolist() == [4.0] * 5  # sums add up
    buffers = list(alone.model.buffers())
    assert buffers
    assert all(torch.equal(buffer, torch.full_like(buffer, 2)) for buffer in buffers)  # statistics are averaged
    take_own(alone, ranks[1:])
    assert alone.sums.tolist() == [3.0] * 5  # of one rank, as it was


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    doodle_shards: str, tmp_path: Path, ema_decay: float
) -> None:
    """Without Ray; from a checkpoint in the middle of the second of three epochs."""
    config = TINY.model_copy(update={"num_epochs": 3, "ema_decay": ema_decay})  # with dropout and augmentation
    shards = open_shards(doodle_shards)
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    stop = feed.steps + feed.steps // 2

    def run(learner: Learner, history: list[Metrics]) -> Loop:
        first, skip = divmod(learner.steps, feed.steps)
        stream = cut(learner, batches(feed, range(first, 3), skip=skip))
        valid = EvalFeed(shards.rows("valid"))
        return Loop(learner=learner, feed=feed, stream=stream, valid=valid, keep=lambda _: None, history=history)

    def cut(learner: Learner, stream: Iterator[Batch]) -> Iterator[Batch]:
        for batch in stream:
            if learner is whole and learner.steps == stop:
                meta = make_meta(config, shards, step=stop, epoch=1, history=loop.history)
                assert meta.metrics == {}
                checkpoints.save(tmp_path, learner.kept.state_dict(), meta, learner.state_dict())
            yield batch

    whole, resumed = (Learner(config, len(shards.classes), total_steps=feed.steps * 3) for _ in range(2))
    loop = run(whole, [])
    loop.run()
    model, meta = checkpoints.load(str(tmp_path))
    resumed.load_state_dict(model.state_dict(), checkpoints.load_state(str(tmp_path)))
    again = run(resumed, list(meta.history))
    again.run()
    assert_equal(whole.kept.state_dict(), resumed.kept.state_dict())
    assert [learned(metrics) for metrics in again.history] == [learned(metrics) for metrics in loop.history]


def test_a_killed_job_goes_on_with_resume_and_ends_the_same(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    """It is killed in the middle of an epoch."""
    flags = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--preset", "homl", "--num-epochs", "2"]
    flags += ["--batch-size", "16", "--checkpoint-every-s", "0.001"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}

    def command(name: str, *more: str) -> list[str]:
        return [sys.executable, str(ROOT / "jobs" / "train.py"), "--name", name, *more]

    subprocess.run(command("whole", *flags), env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        command("killed", *flags), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("checkpoint_*/meta.json")):
            assert time.monotonic() < deadline, "no checkpoint came"
            assert job.poll() is None, "the job ended before it was killed"
            time.sleep(0.005)
        job.send_signal(signal.SIGKILL)
    places = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--resume"]
    done = subprocess.run(command("killed", *places), env=environment, check=True, capture_output=True, text=True)
    assert "going on after epoch" in done.stderr
    assert_equal(final_weights(str(tmp_path / "whole")), final_weights(str(tmp_path / "killed")))


def test_a_name_in_use_needs_resume(run: str, doodle_shards: str) -> None:
    storage_path, name = str(Path(run).parent), Path(run).name
    before = sorted(path.name for path in Path(run).rglob("*"))
    with pytest.raises(RunError, match=r"--name tiny: .* is in use; choose another name, or go on with it by --resume"):
        train(TINY, data=doodle_shards, storage_path=storage_path, name=name)
    assert sorted(path.name for path in Path(run).rglob("*")) == before


def test_bad_places_leave_nothing_behind(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such directory; make it with jobs/ingest\.py"):
        train(TINY, data=str(tmp_path / "nothing"), storage_path=str(tmp_path), name="a")
    with pytest.raises(RunError, match=r"--num-workers 16: more workers than the cluster has CPUs \(2\)"):
        train(TINY, data=doodle_shards, storage_path=str(tmp_path), name="a", num_workers=16)
    with pytest.raises(RunError, match=r"--num-workers 2:1: the least comes first"):
        train(TINY, data=doodle_shards, storage_path=str(tmp_path), name="a", num_workers=(2, 1))
    odd = TINY.model_copy(update={"batch_size": 33})
    with pytest.raises(ValueError, match=r"batch_size=33 cannot be divided over 2 workers"):
        train(odd, data=doodle_shards, storage_path=str(tmp_path), name="a", num_workers=(1, 2))
    with pytest.raises(RunError, match=r"more workers than the cluster has GPUs \(0\)"):
        train(TINY, data=doodle_shards, storage_path=str(tmp_path), name="a", use_gpu=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cpus", "workers", "each"), [(2, 1, 1.0), (2, 2, 0.5), (4, 3, 1.0), (4, 4, 0.75), (3, 3, 0.666), (64, 8, 1.0)]
)
def test_workers_leave_a_cpu_to_ray_data(cpus: int, workers: int, each: float) -> None:
    assert cpus_per_worker(Cluster(cpus, 0), workers) == each
    assert cpus - workers * each >= 1


def test_threads_follow_the_cpus_that_ray_counts(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, expected in ((64, 2), (1, 1)):  # as in a container of a large machine; Ray was told of two CPUs
        monkeypatch.setattr(os, "cpu_count", lambda machine=machine: machine)
        assert node_cpus() == expected


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
