"""Faults on real processes: each ends as an undisturbed run does, bit for bit, or stops with what to do about it."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from object_store import ObjectStore
from test_runs import flip
from test_training import EXACT, assert_equal, final_weights, learned
from torch import multiprocessing

from sketchray import checkpoint as checkpoints
from sketchray import doodles, training
from sketchray.errors import DataError, RunError, StorageError
from sketchray.ingest import ingest
from sketchray.ingest.place import choose_split
from sketchray.keeper import Keeper
from sketchray.owner import claim
from sketchray.recipe import TrainConfig
from sketchray.runs import newest
from sketchray.shards import open_shards
from sketchray.sources import open_source
from sketchray.strokes import to_record
from sketchray.training import train

# What differs between ranks in the middle of an epoch, and between the model and what is kept of it, is there too:
# batch statistics and a moving average. 120 steps an epoch.
CONFIG = TINY.model_copy(
    update={
        "num_epochs": 2,
        "batch_size": 8,
        "ema_decay": 0.9,
        "model": TINY.model.model_copy(update={"conv_norm": "batch"}),
    }
)
OFTEN_S = 0.001  # a checkpoint each time that the loop looks whether one is due, every 20 steps
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def whole(doodle_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two workers."""
    runs = tmp_path_factory.mktemp("faults")
    train(CONFIG, data=doodle_shards, storage_path=str(runs), name="whole", num_workers=2, checkpoint_every_s=OFTEN_S)
    return runs / "whole"


def assert_same(run: Path, whole: Path) -> None:
    """Fails unless a run ended with the weights and the metrics of an undisturbed one."""
    assert_equal(final_weights(str(run)), final_weights(str(whole)))
    histories = [checkpoints.read_meta(str(max(path.glob("checkpoint_*")))).history for path in (run, whole)]
    assert [learned(metrics) for metrics in histories[0]] == [learned(metrics) for metrics in histories[1]]


def wait_for(condition: Callable[[], Any], what: str, running: "Future[Any] | None" = None) -> Any:
    """Returns the first true value of a condition, which is asked again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        if running is not None and running.done():
            raise AssertionError(f"the run ended before {what}: {running.exception() or running.result()}")
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)


def workers() -> list[int]:
    """The process ids of the training workers of this session's cluster."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], check=True, capture_output=True, text=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in lines}

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [
        int(pid) for pid, _, *args in lines if args and args[0].startswith("ray::RayTrainWorker") and is_ours(int(pid))
    ]


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Runs one thing while the test does another."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def in_the_middle(run: Path, step: int = 20) -> Callable[[], bool]:
    """Whether a checkpoint of this step or a later one of the middle of the first epoch is complete."""
    return lambda: any((run / f"checkpoint_{n:09d}" / "meta.json").exists() for n in range(step, 120, 20))


def test_the_run_goes_on_when_a_worker_is_killed(
    whole: Path,
    doodle_shards: str,
    tmp_path: Path,
    background: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(training, "MAX_FAILURES", 1)  # one in a row; two are survived, with checkpoints between them
    places = {"data": doodle_shards, "storage_path": str(tmp_path), "name": "killed"}
    running = background.submit(train, CONFIG, **places, num_workers=2, checkpoint_every_s=OFTEN_S)
    killed: set[int] = set()
    for step in (20, 60):
        wait_for(in_the_middle(tmp_path / "killed", step), f"step {step}", running)
        alive = [pid for pid in workers() if pid not in killed]
        killed.update(alive)
        os.kill(alive[-1], signal.SIGKILL)
    running.result(PATIENCE_S)
    assert_same(tmp_path / "killed", whole)
    deaths = [message for message in caplog.messages if message.startswith("a worker died")]
    assert len(deaths) == 2
    assert all("going on from" in message and "checkpoint_0000000" in message for message in deaths)


def test_a_damaged_and_a_torn_checkpoint_are_passed_over_on_resume(
    whole: Path, doodle_shards: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "damaged"))
    flip(max(run.glob("checkpoint_*")) / "state.pt")
    torn = run / "checkpoint_000000999"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    train(CONFIG, data=doodle_shards, storage_path=str(tmp_path), name="damaged", num_workers=2, resume=True)
    assert not torn.exists()
    assert_same(run, whole)


def test_a_full_disk_stops_the_run_at_once_and_resume_goes_on(
    whole: Path, doodle_shards: str, tmp_path: Path, background: ThreadPoolExecutor
) -> None:
    run = tmp_path / "full"
    places: dict[str, Any] = {"data": doodle_shards, "storage_path": str(tmp_path), "name": "full", "num_workers": 2}
    running = background.submit(train, CONFIG, **places, checkpoint_every_s=OFTEN_S)
    wait_for(in_the_middle(run), "a checkpoint", running)
    size = (max(run.glob("checkpoint_*")) / "state.pt").stat().st_size
    for pid in workers():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size - 1, size - 1))
    before = sorted(run.glob("checkpoint_*/meta.json"))
    with pytest.raises(
        StorageError, match=r"full.*: cannot be written \(.*File too large.*\); make room there, then go on"
    ):
        running.result(PATIENCE_S)
    after = sorted(run.glob("checkpoint_*/meta.json"))
    assert after
    assert {*after} <= {*before} | {run / f"checkpoint_{step:09d}" / "meta.json" for step in range(20, 120, 20)}
    assert all((path.parent / "state.pt").exists() for path in after)
    train(CONFIG, **places, resume=True)
    assert_same(run, whole)


def poisoned(rank: int, world_size: int, port: int, shards: str, said: "multiprocessing.SimpleQueue[str]") -> None:
    """One of two processes that train; on rank 1 the loss of step 3 is NaN."""
    import torch.distributed as dist

    from sketchray.engine import Learner
    from sketchray.feed import batches
    from sketchray.loop import Loop
    from sketchray.order import EvalFeed, TrainFeed

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    opened = open_shards(shards)
    feed = TrainFeed(opened.rows("train"), EXACT.batch_size, EXACT.seed, rank, world_size)

    class Poisoned(torch.nn.parallel.DistributedDataParallel):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(*inputs)
            return logits * float("nan") if rank == 1 and learner.steps == 3 else logits

    learner = Learner(EXACT, len(opened.classes), total_steps=feed.steps, rank=rank, wrap=Poisoned)
    valid = EvalFeed(opened.rows("valid"), 32, rank, world_size)
    kept: list[Any] = []
    try:
        Loop(learner=learner, feed=feed, stream=batches(feed), valid=valid, keep=kept.append).run()
    except RunError as error:
        said.put(f"{len(kept)} kept: {error}")
    dist.destroy_process_group()


def test_a_loss_that_is_nan_on_one_rank_is_named_on_all(doodle_shards: str) -> None:
    from sketchray.demo import free_port

    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    multiprocessing.spawn(poisoned, (2, free_port(), doodle_shards, said), nprocs=2)
    messages = {said.get() for _ in range(2)}
    assert len(messages) == 1
    (message,) = messages
    assert message.startswith("0 kept: the loss became NaN or infinite in step 3 on rank 1; try a lower --lr")


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(
    whole: Path, doodle_shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "wild"))
    keeper = Keeper(str(run))
    (latest, meta), *_ = checkpoints.find(str(run))
    shutil.rmtree(latest)
    (latest, meta), *_ = checkpoints.find(str(run))
    state = checkpoints.load_state(latest)
    state["weights"] = {name: tensor * 1e30 for name, tensor in state["weights"].items()}  # the next loss overflows
    keeper.keep(meta.step, checkpoints.pack(checkpoints.load(latest)[0].state_dict(), meta, state), wait=True)
    keeper.close()
    before = sorted(run.glob("checkpoint_*"))
    match = rf"wild: the loss became NaN or infinite in step {meta.step} on rank 0; try a lower --lr.* is {latest}$"
    with pytest.raises(RunError, match=match):
        train(CONFIG, data=doodle_shards, storage_path=str(tmp_path), name="wild", num_workers=2, resume=True)
    assert sorted(run.glob("checkpoint_*")) == before
    assert not [message for message in caplog.messages if "died" in message]  # what comes back is not tried again


def test_a_job_whose_run_another_one_resumes_stops(
    doodle_shards: str, tmp_path: Path, background: ThreadPoolExecutor
) -> None:
    places = {"data": doodle_shards, "storage_path": str(tmp_path), "name": "twice"}
    first = background.submit(train, CONFIG, **places, checkpoint_every_s=OFTEN_S)
    wait_for(in_the_middle(tmp_path / "twice"), "a checkpoint", first)
    run = str(tmp_path / "twice")
    claim(run).take()
    with pytest.raises(RunError, match=r"twice: another job goes on here since 20.* is .*/checkpoint_\d+$"):
        first.result(PATIENCE_S)
    stored = newest(run)
    assert stored is not None
    assert not stored[2].history, "its epoch was stored, though it had lost the run"


def test_damaged_shards_stop_the_run_at_once(
    doodle_shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(shutil.copytree(doodle_shards, tmp_path / "data"))
    for shard in data.glob("*.parquet"):
        content = bytearray(shard.read_bytes())
        content[100:-20_000] = bytes(len(content) - 20_100)  # the footer stays
        shard.write_bytes(content)
    with pytest.raises(DataError, match=r"/a: .*\.parquet: .*; the data set is damaged, ingest again$"):
        train(TINY, data=str(data), storage_path=str(tmp_path), name="a")
    assert not [message for message in caplog.messages if "died" in message]


def records(name: str, count: int, start: int) -> list[dict[str, Any]]:
    """Simplified records of doodles of a class."""
    return [{"word": name, "key_id": str(start + n), "drawing": to_record(doodles.draw(name, n))} for n in range(count)]


def test_few_shards_a_class_absent_from_validation_and_a_huge_drawing(cluster: str, tmp_path: Path) -> None:
    import json

    long = np.random.default_rng(0).integers(0, 255, (2, 50_000)).tolist()
    lines = [*records(doodles.CLASSES[0], 200, 1), *records(doodles.CLASSES[1], 200, 1001)]
    rare = records(doodles.CLASSES[2], 60, 2001)
    keys = np.array([int(record["key_id"]) for record in rare], np.uint64)
    absent = [record for record, split in zip(rare, choose_split(keys), strict=True) if split == "train"]
    (tmp_path / "all").mkdir()
    for index, name in enumerate(doodles.CLASSES[:3]):
        own = [json.dumps(record) for record in [*lines, *absent] if record["word"] == name]
        if index == 0:
            own += [json.dumps({"word": name, "key_id": str(key), "drawing": [long]}) for key in range(5001, 5021)]
        (tmp_path / "all" / f"{name}.ndjson").write_text("\n".join(own) + "\n")
    source = open_source(str(tmp_path / "all"), "simplified", max_points=60_000)
    report = ingest(source, str(tmp_path / "data"), num_shards=1)
    assert report["quarantined"] == 0
    shards = open_shards(str(tmp_path / "data"))
    longest = max(
        shards.rows("train").read(0, len(shards.rows("train")))["points"].combine_chunks().value_lengths().to_pylist()
    )
    assert longest == 50_000
    valid = shards.rows("valid")
    assert shards.classes.index(doodles.CLASSES[2]) not in valid.read(0, len(valid))["label"].to_pylist()
    result = train(TINY, data=str(tmp_path / "data"), storage_path=str(tmp_path), name="odd", num_workers=2)
    assert result["metrics"]["val_top1"] > 0


def test_fine_tuning_onto_other_classes_with_every_option(run: str, cluster: str, tmp_path: Path) -> None:
    """From the session's run; balanced weights, bfloat16, parts of batches, and patience, on Ray."""
    ingest(
        open_source(None, "doodles", classes=doodles.CLASSES[:3], per_class=60, seed=4), str(tmp_path / "data"), seed=4
    )
    config: TrainConfig = TINY.model_copy(
        update={
            "num_epochs": 20,
            "patience": 1,
            "class_weights": "balanced",
            "precision": "bfloat16",
            "gradient_accumulation_steps": 2,
        }
    )
    result = train(
        config, data=str(tmp_path / "data"), storage_path=str(tmp_path), name="fine", from_checkpoint=run, num_workers=2
    )
    meta = checkpoints.read_meta(str(max((tmp_path / "fine").glob("checkpoint_*"))))
    assert len(meta.history) < 20
    scores = [metrics["val_top1"] for metrics in meta.history]
    assert scores[-1] <= max(scores[:-1])
    assert meta.history[0]["val_top1"] > 0.8  # it knew these classes; chance is 0.33
    assert result["metrics"]["val_top1"] == max(scores)


def test_a_run_on_s3_goes_on_where_its_last_whole_checkpoint_is(
    run: str,
    cluster: str,
    doodle_shards: str,
    store: ObjectStore,
    background: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It learns from a teacher alone. S3 refuses for a while, and meanwhile its worker dies."""
    uri = store.make_bucket("learning")
    for file in Path(doodle_shards).iterdir():
        store.client.upload_file(str(file), "learning", f"data/{file.name}")
    places = {"data": uri.format("data"), "storage_path": uri.format("runs"), "name": "cloud"}
    config = TINY.model_copy(update={"distillation_weight": 1.0})

    def keys() -> list[str]:
        found = store.client.list_objects_v2(Bucket="learning", Prefix="runs/cloud/").get("Contents", [])
        return [entry["Key"] for entry in found]

    learning = background.submit(train, config, **places, teachers=[run], checkpoint_every_s=OFTEN_S)
    wait_for(lambda: any("/checkpoint_" in key for key in keys()), "a checkpoint", learning)
    store.refusing = True
    time.sleep(8)  # pyarrow gives up after 6
    assert store.refused, "nothing was refused"
    os.kill(workers()[-1], signal.SIGKILL)
    time.sleep(8)
    store.refusing = False
    first = learning.result(PATIENCE_S)
    assert len([message for message in caplog.messages if message.startswith("a worker died")]) == 1
    assert first["metrics"]["val_top1"] > 0.5
    weights = checkpoints.load(first["checkpoint"])[0].state_dict()
    latest = max(key for key in keys() if "/checkpoint_" in key and key.endswith("/meta.json"))
    store.client.delete_object(Bucket="learning", Key=latest)
    again = train(config, **places, resume=True)
    assert again["metrics"] == first["metrics"]
    assert_equal(checkpoints.load(again["checkpoint"])[0].state_dict(), weights)
