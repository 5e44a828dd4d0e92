"""The loop without Ray: when it keeps a checkpoint, when it stops, what it says and logs."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY
from object_store import ObjectStore
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sketchray.engine import Learner
from sketchray.feed import batches
from sketchray.logbook import Logbook
from sketchray.loop import Loop, Metrics, out_of_patience
from sketchray.order import EvalFeed, TrainFeed
from sketchray.recipe import TrainConfig
from sketchray.shards import ShardSet, open_shards


def make_loop(
    shards: ShardSet,
    config: TrainConfig,
    kept: list[Metrics],
    *,
    checkpoint_every_s: float = 0.0,
    logbook: Logbook | None = None,
) -> Loop:
    feed = TrainFeed(shards.rows("train"), config.batch_size, config.seed)
    return Loop(
        learner=Learner(config, len(shards.classes), total_steps=feed.steps * config.num_epochs),
        feed=feed,
        stream=batches(feed, range(config.num_epochs)),
        valid=EvalFeed(shards.rows("valid")),
        keep=kept.append,
        checkpoint_every_s=checkpoint_every_s,
        logbook=logbook,
    )


def test_checkpoints_come_after_each_epoch_and_when_due(doodle_shards: str) -> None:
    config = TINY.model_copy(update={"batch_size": 8})  # some 120 steps an epoch; the loop looks every 20
    kept: list[Metrics] = []
    loop = make_loop(open_shards(doodle_shards), config, kept, checkpoint_every_s=1e-9)
    loop.run()
    steps = loop.feed.steps
    middle = (steps - 1) // 20
    assert middle >= 3
    assert [bool(metrics) for metrics in kept] == ([False] * middle + [True]) * 2
    assert [metrics["epoch"] for metrics in kept if metrics] == [1, 2]
    assert loop.history == [metrics for metrics in kept if metrics]
    assert loop.learner.steps == 2 * steps

    kept.clear()
    make_loop(open_shards(doodle_shards), config, kept).run()
    assert [bool(metrics) for metrics in kept] == [True, True]


def test_training_stops_when_patience_runs_out(doodle_shards: str) -> None:
    still = TINY.model_copy(update={"lr": 1e-12, "num_epochs": 9, "patience": 2})  # nothing is learned
    kept: list[Metrics] = []
    make_loop(open_shards(doodle_shards), still, kept).run()
    assert len(kept) == 3  # the first is the best, and two more do not better it


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [([], 1, False), ([0.1, 0.3, 0.2], 2, False), ([0.1, 0.3, 0.2, 0.3], 2, True), ([0.3, 0.2, 0.1], 0, False)],
)
def test_patience_counts_epochs_since_the_best(values: list[float], patience: int, stops: bool) -> None:
    assert out_of_patience([{"val_top1": value} for value in values], patience) is stops


def test_a_progress_line_says_where_it_stands(doodle_shards: str, capfd: pytest.CaptureFixture[str]) -> None:
    make_loop(open_shards(doodle_shards), TINY, []).run()
    lines = capfd.readouterr().err.splitlines()
    first = next(line for line in lines if " step 1/" in line)
    assert re.fullmatch(
        r"epoch 1/2 step 1/\d+: loss \d\.\d{3}, top1 \d+\.\d%, [\d,]+ drawings/s, "
        r"waiting for data \d+\.\d%, [\d,]+ s left",
        first,
    )
    ends = [line for line in lines if re.match(r"epoch \d/2: val_top1 ", line)]
    assert len(ends) == 2


def test_the_logbook_has_scalars_and_pictures(doodle_shards: str, tmp_path: Path) -> None:
    shards = open_shards(doodle_shards)
    kept: list[Metrics] = []
    book = Logbook(str(tmp_path), shards.classes)
    make_loop(shards, TINY, kept, logbook=book).run()
    book.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"top1/val", "top1/train", "loss/val", "epoch/grad_norm", "epoch/clipped_share"} <= set(tags["scalars"])
    assert {"progress/loss", "progress/waiting_share"} <= set(tags["scalars"])
    for metrics, event in zip(kept, events.Scalars("top1/val"), strict=True):
        assert (event.step, event.value) == (metrics["step"], pytest.approx(metrics["val_top1"], rel=1e-6))  # float32
    assert set(tags["images"]) == {"confusion", "guesses"}
    confusion = events.Images("confusion")[-1]
    assert (confusion.width, confusion.height) == (10, 10)
    picture = events.Images("guesses")[-1]
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert len(picture.encoded_image_string) > 20_000  # 24 drawings, not blank


def test_logs_that_cannot_be_copied_stop_no_run(
    doodle_shards: str, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    shards = open_shards(doodle_shards)
    book = Logbook(store.make_bucket("there").replace("@there", "@missing").format("run"), shards.classes)
    kept: list[Metrics] = []
    make_loop(shards, TINY, kept, logbook=book).run()
    book.close()
    assert len(kept) == 2
    told = [record.message for record in caplog.records if record.name == "sketchray.logbook"]
    assert [message.partition(" (")[0] for message in told] == [
        "missing/run/tensorboard: the TensorBoard logs of this epoch are not there yet"
    ] * 2


def test_the_confusion_counts_every_drawing_once(doodle_shards: str) -> None:
    rows = open_shards(doodle_shards).rows("valid")
    learner = Learner(TINY, 10, total_steps=1)
    confusion = torch.zeros(10, 10, dtype=torch.long)
    sums = learner.evaluate(batches(EvalFeed(rows)), confusion)
    labels = torch.from_numpy(rows.read(0, len(rows))["label"].to_numpy().astype("int64"))
    assert confusion.sum(1).tolist() == labels.bincount(minlength=10).tolist()
    assert int(confusion.trace()) == int(sums[2])
