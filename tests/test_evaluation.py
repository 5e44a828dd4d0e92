"""Evaluation: the same for any windows and actors, and its examples are the drawings that they say."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import real_records

from sketchray.checkpoint import Meta, save
from sketchray.columns import from_column, to_column
from sketchray.engine import SUMS
from sketchray.evaluation import PREFIXES, _Scorer, evaluate
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.order import EvalFeed
from sketchray.outcomes import OUTCOME, Tally, read_rows
from sketchray.predictor import Predictor, softmax
from sketchray.shards import SPLITS, File, Manifest, RowGroup, ShardSet, make_schema, open_shards
from sketchray.strokes import from_record

# No LSTM and no batch statistics: a drawing's answer depends on its batch by float32 rounding only.
CONV = ModelConfig(features="deltas", conv_channels=(6,), conv_kernels=(5,), conv_strides=(1,), rnn_layers=0)


def make_shards(directory: Path, *, classes: int = 5, per_class: int = 30, group: int = 16) -> ShardSet:
    """Writes real drawings, all but a few of the test split, in small row groups; every third has no key."""
    directory.mkdir()
    records = real_records(per_class, classes)
    names = sorted({record["word"] for record in records})
    drawings = [from_record(record["drawing"]) for record in records]
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    is_test = [place >= 20 for place in range(len(order))]
    provenance: dict[str, str | int | bool] = {"licence": "a licence", "synthetic": False}
    table = pa.table(
        [
            to_column(
                np.concatenate([drawings[place] for place in order]),
                np.cumsum([0, *(len(drawings[place]) for place in order)]),
            ),
            pa.array([names.index(records[place]["word"]) for place in order], pa.int16()),
            pa.array([int(records[place]["key_id"]) if place % 3 else None for place in order], pa.uint64()),
            pa.array([(True, False, None)[place % 3] for place in order], pa.bool_()),
            pa.array(["test" if test else "train" for test in is_test], pa.string()),
        ],
        schema=make_schema(names, provenance),
    )
    path, groups = directory / "shard-00000-of-00001.parquet", []
    with pq.ParquetWriter(path, table.schema) as writer:
        for split in ("train", "test"):
            part = table.filter(pa.compute.equal(table["split"], split))
            for start in range(0, len(part), group):
                piece = part.slice(start, group)
                writer.write_table(piece, row_group_size=group)
                groups.append(RowGroup(shard=path.name, index=len(groups), split=split, rows=len(piece)))
    content = path.read_bytes()
    manifest = Manifest(
        classes=names,
        splits={split: sum(group.rows for group in groups if group.split == split) for split in SPLITS},
        class_counts=dict.fromkeys(names, per_class),
        duplicates=0,
        quarantined=0,
        files={path.name: File(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())},
        row_groups=groups,
        provenance=provenance,
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return open_shards(str(directory))


def write_checkpoint(directory: Path, classes: list[str], *, poison: bool = False) -> str:
    """Writes an untrained model that knows some classes, in another order than the data, and one more."""
    directory.mkdir()
    torch.manual_seed(0)
    model = StrokeClassifier(CONV, len(classes) + 1)
    torch.nn.init.normal_(model.head.weight, std=3.0)  # so that its guesses differ, and some are confident
    if poison:
        torch.nn.init.constant_(model.head.bias, torch.nan)
    known = [*reversed(classes), "zebra"]
    meta = Meta(model=CONV, config={}, classes=known, epoch=1, step=1, metrics={}, data={}, licence="none", versions={})
    save(directory, model.state_dict(), meta)
    return str(directory)


def add_up(parts: Iterable[pa.Table], classes: int) -> tuple[np.ndarray, Tally]:
    sums, tally = np.zeros((len(PREFIXES), len(SUMS))), Tally(classes)
    for part in parts:
        for row in part.to_pylist():
            sums += np.reshape(row["sums"], sums.shape)
            tally.add(np.frombuffer(row["outcomes"], OUTCOME))
    return sums, tally


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shards(tmp_path_factory.mktemp("evaluated") / "data")


@pytest.fixture(scope="module")
def checkpoint(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("evaluated") / "checkpoint", shards.classes)


@pytest.mark.parametrize("window", [7, 50, 16_384])
def test_an_outcome_is_the_models_answer_to_that_row(
    monkeypatch: pytest.MonkeyPatch, shards: ShardSet, checkpoint: str, window: int
) -> None:
    monkeypatch.setattr("sketchray.order.EVAL_ROWS", window)
    rows = shards.rows("test")
    feed = EvalFeed(rows, 16)
    part = _Scorer(checkpoint, feed, shards.classes, 1)(pa.table({"id": range(feed.windows)}))
    found = np.concatenate([np.frombuffer(row, OUTCOME) for row in part["outcomes"].to_pylist()])
    assert sorted(found["row"].tolist()) == list(range(len(rows)))
    found = found[np.argsort(found["row"])]

    table = rows.read(0, len(rows), ("points", "label", "key_id"))
    points, offsets = from_column(table["points"])
    predictor = Predictor.load(checkpoint)
    probability = softmax(predictor.logits(np.split(points, offsets[1:-1])))
    assert [predictor.meta.classes[truth] for truth in found["truth"]] == [
        shards.classes[label] for label in table["label"].to_pylist()
    ]
    # Batches of other sizes round float32 otherwise; a guess is the likeliest class but for that.
    np.testing.assert_allclose(found["probability"], probability.max(1), rtol=1e-4)
    np.testing.assert_allclose(probability[np.arange(len(found)), found["guess"]], found["probability"], rtol=1e-4)
    assert len(set(found["guess"].tolist())) > 1

    asked = np.array([100, 3, 3, 0, 57])
    assert read_rows(rows, asked)["key_id"].to_pylist() == [table["key_id"][row].as_py() for row in asked.tolist()]


def test_the_number_of_actors_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, shards: ShardSet, checkpoint: str
) -> None:
    monkeypatch.setattr("sketchray.order.EVAL_ROWS", 20)
    feed = EvalFeed(shards.rows("test"), 16)
    one, *two = [_Scorer(checkpoint, feed, shards.classes, 1) for _ in range(3)]
    sums, tally = add_up([one(pa.table({"id": range(feed.windows)}))], 6)
    shared = [two[place % 2](pa.table({"id": [place]})) for place in range(feed.windows)]
    for parts in (shared, shared[::-1]):
        other_sums, other = add_up(parts, 6)
        # Loss and MAP@3 are sums of floats: evaluate adds them up in the order of the windows, whoever is first.
        np.testing.assert_allclose(other_sums, sums, rtol=1e-14)
        assert other.ece == tally.ece
        assert other.bins.tolist() == tally.bins.tolist()
        assert other.confusion.tolist() == tally.confusion.tolist()
        assert other.mistakes().tolist() == tally.mistakes().tolist()
        assert all(
            other.examples(truth, guess, 6).tolist() == tally.examples(truth, guess, 6).tolist()
            for truth in range(6)
            for guess in range(6)
        )


def test_evaluate_returns_the_contracts_keys(cluster: str, shards: ShardSet, checkpoint: str) -> None:
    evaluation = evaluate(checkpoint, shards.uri)
    result = evaluation.result
    assert list(result) == [
        "split", "drawings", "loss", "top1", "top5", "map3", "ece", "early", "drawings_per_s",
    ]  # fmt: skip
    assert result["drawings"] == 130
    assert list(result["early"]) == ["25", "50", "75", "100"]
    assert result["early"]["100"] == result["top1"]
    assert result["top1"] == np.diag(evaluation.tally.confusion).sum() / 130
    assert 0 < result["ece"] == evaluation.tally.ece < 1
    assert evaluation.checkpoint == checkpoint
    assert evaluation.meta.classes[-1] == "zebra"
    assert evaluation.version == Predictor.load(checkpoint).version


def test_a_model_that_answers_nan_is_counted_wrong_and_stops_nothing(shards: ShardSet, tmp_path: Path) -> None:
    poisoned = write_checkpoint(tmp_path / "poisoned", shards.classes, poison=True)
    feed = EvalFeed(shards.rows("test"), 64)
    sums, tally = add_up([_Scorer(poisoned, feed, shards.classes, 1)(pa.table({"id": [0]}))], 6)
    assert sums[-1, 2] == 0
    assert tally.bins[:, 1].sum() == 0
    assert tally.confusion.sum() == 130
