"""A checkpoint run over a data set on Ray Data: metrics, outcomes, early recognition; and batch prediction.

Sums are made where the drawings are and added up once, so a metric depends on neither the number of workers nor the
batch size. Shapes: B drawings.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch

from sketchray.batch import Batch, pad
from sketchray.checkpoint import best
from sketchray.cluster import Cluster, check_shared, connect
from sketchray.columns import from_column
from sketchray.engine import SUMS, new_sums, score, to_metrics
from sketchray.errors import CheckpointError, DataError
from sketchray.feed import collate
from sketchray.order import EvalFeed, windows_of
from sketchray.outcomes import OUTCOME, Evaluation, Outcomes, Tally
from sketchray.predictor import Predictor
from sketchray.shards import Rows, open_shards
from sketchray.sources import Source
from sketchray.storage import absolute, open_filesystem

logger = logging.getLogger(__name__)

PREFIXES = (25, 50, 75, 100)  # per cent of the points that the model is shown
BATCH_SIZE = 256
ROWS_PER_TASK = 4_096  # of batch prediction


class _NumberedRows(Rows):
    """Rows that say which they are, in a column `row`."""

    def read(self, start: int, stop: int, columns: Sequence[str] = ("points", "label")) -> pa.Table:
        table = super().read(start, stop, columns)
        return table.append_column("row", pa.array(np.arange(start, stop)))


class _Scorer:
    """Scores windows, in an actor that holds the model."""

    def __init__(self, checkpoint: str, feed: EvalFeed, data_classes: list[str], threads: int) -> None:
        torch.set_num_threads(threads)
        self.predictor = Predictor.load(checkpoint)
        self.feed = replace(feed, rows=_NumberedRows(feed.rows.uri, feed.rows.groups))
        index = {name: number for number, name in enumerate(self.predictor.meta.classes)}
        self.labels = torch.tensor([index[name] for name in data_classes])  # data label -> model label

    def __call__(self, places: pa.Table) -> pa.Table:
        windows = windows_of(self.feed, (0,))
        scored = [self._score(*windows[place]) for place in places["id"].to_pylist()]
        return pa.table(
            {
                "sums": [sums.numpy().reshape(-1) for sums, _ in scored],
                "outcomes": [outcomes.tobytes() for _, outcomes in scored],
            }
        )

    def _score(self, epoch: int, number: int) -> tuple[torch.Tensor, Outcomes]:
        """Returns sums for each prefix, `(4, 5)`, and `(B,)` outcomes of a window."""
        table = self.feed.read(epoch, number)
        window = collate(table)
        sums = torch.stack([new_sums() for _ in PREFIXES])
        outcomes = np.empty(len(window), OUTCOME)
        outcomes["row"] = table["row"].to_numpy()
        outcomes["truth"] = self.labels[window.labels]
        done = 0
        for batch in self.feed.cut(Batch(window.values, window.offsets, self.labels[window.labels])):
            for row, percent in enumerate(PREFIXES):
                shown = batch if percent == 100 else batch.prefix(percent / 100)
                points, lengths = pad(shown.values, shown.offsets, self.predictor.meta.model.max_points)
                logits = torch.from_numpy(self.predictor.padded_logits(points, lengths))
                sums[row] += score(logits, batch.labels)
            probability, guess = logits.softmax(1).max(1)
            part = outcomes[done : done + len(batch)]
            part["guess"], part["probability"] = guess, probability.nan_to_num()
            done += len(batch)
        return sums, outcomes


def _actors(cluster: Cluster) -> tuple[int, int]:
    """Returns how many actors score, and threads of each: all CPUs but the one that reads are for them."""
    actors = max(1, int(cluster.cpus) - 1)
    return actors, max(1, int(cluster.cpus) // actors)


def evaluate(checkpoint: str, data: str, *, split: str = "test") -> Evaluation:
    """Returns metrics of a checkpoint on a split, on the Ray cluster that is connected.

    Args:
        checkpoint: a checkpoint, a run (its best), an ONNX file, or a URI of one.
        data: a directory or URI that `ingest` wrote.
        split: train, valid, test or all.

    Raises:
        CheckpointError: there is none, or it does not know a class of the data.
        DataError: the data set cannot be used, or the split is empty.
        RunError: a node does not see the same.
    """
    import ray

    data, checkpoint = absolute(data), absolute(checkpoint)
    shards = open_shards(data)
    rows = shards.rows(split)
    if not len(rows):
        raise DataError(f"{data}: the {split} split is empty; choose another --split")
    checkpoint = checkpoint if checkpoint.endswith(".onnx") else best(checkpoint)
    predictor = Predictor.load(checkpoint)
    classes = predictor.meta.classes
    unknown = sorted(set(shards.classes) - set(classes))
    if unknown:
        raise CheckpointError(
            f"{data}: class {unknown[0]!r} is not one of the {len(classes)} that {checkpoint} knows; "
            f"ingest with --classes, or train on this data"
        )
    actors, threads = _actors(connect())
    check_shared({"--checkpoint": [checkpoint], "--data": [data]}, {})
    feed = EvalFeed(rows, BATCH_SIZE)
    dataset = ray.data.range(feed.windows, override_num_blocks=feed.windows).map_batches(
        _Scorer,
        fn_constructor_args=(checkpoint, feed, shards.classes, threads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, feed.windows)),
        num_cpus=1,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True  # sums of floats: the last bits depend on the order
    sums = np.zeros((len(PREFIXES), len(SUMS)))
    tally = Tally(len(classes))
    started = time.perf_counter()
    for part in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in part.to_pylist():  # type: ignore[union-attr]
            sums += np.reshape(row["sums"], sums.shape)
            tally.add(np.frombuffer(row["outcomes"], OUTCOME))
        now = time.perf_counter()
        done = sums[-1, 0]
        rate = done / (now - started)
        logger.info(
            "scored %s of %s drawings, %s drawings/s, %.0f s left",
            f"{done:,.0f}",
            f"{len(rows):,}",
            f"{rate:,.0f}",
            (len(rows) - done) / rate,
        )
    metrics = to_metrics(torch.from_numpy(sums[-1]), "")
    early = {str(percent): float(row[2] / row[0]) for percent, row in zip(PREFIXES, sums, strict=True)}
    result = {
        "split": split,
        "drawings": int(sums[-1, 0]),
        **metrics,
        "ece": tally.ece,
        "early": early,
        "drawings_per_s": round(len(rows) / (time.perf_counter() - started), 1),
    }
    return Evaluation(result, tally, checkpoint, predictor.meta, predictor.version, shards)


class _Guesser:
    """Predicts drawings, in an actor that holds the model."""

    def __init__(self, checkpoint: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.predictor = Predictor.load(checkpoint)

    def __call__(self, table: pa.Table) -> pa.Table:
        points, offsets = from_column(table["points"])
        drawings = np.split(points, offsets[1:-1])
        by_length = np.argsort(np.diff(offsets), kind="stable")
        guesses: list[Any] = [None] * len(drawings)
        for start in range(0, len(drawings), BATCH_SIZE):
            rows = by_length[start : start + BATCH_SIZE].tolist()
            for row, guess in zip(rows, self.predictor.predict([drawings[row] for row in rows]), strict=True):
                guesses[row] = guess
        columns = {
            "key_id": table["key_id"],
            "class": table["class"],
            "label": [guess[0].label for guess in guesses],
            "probability": [guess[0].probability for guess in guesses],
            "top": pa.array(
                [[guess._asdict() for guess in five] for five in guesses],
                pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())])),
            ),
        }
        return pa.table(columns).cast(PREDICTION_SCHEMA)


PREDICTION_SCHEMA = pa.schema(
    [
        ("key_id", pa.uint64()),
        ("class", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("top", pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())]))),
    ]
)


class _ReadPart:
    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, numbers: pa.Table) -> Any:
        for part in numbers["id"].to_pylist():
            for block in self.source.read(part):
                for line, reason in block.bad:
                    raise DataError(f"{self.source.parts[part].uri}:{line}: {reason}; mend or remove it")
                yield block.table


def predict(checkpoint: str, source: Source, out: str) -> dict[str, Any]:
    """Writes Parquet files with a guess for each drawing of a source, and returns the job's JSON.

    Columns: `key_id`, `class` (as the source says, null if it does not), `label` and `probability` (the first guess),
    `top` (the five likeliest).

    Raises:
        CheckpointError: there is no such checkpoint.
        DataError: a record is bad, or `out` is in use. Nothing is left in `out`.
        RunError: a node does not see the same.
    """
    import ray

    out, checkpoint = absolute(out), absolute(checkpoint)
    Predictor.load(checkpoint)
    filesystem, path = open_filesystem(out)
    if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        raise DataError(f"--out {out}: exists; choose another directory or remove it")
    actors, threads = _actors(connect())
    source = source.fetched()
    model = checkpoint if checkpoint.endswith(".onnx") else best(checkpoint)
    check_shared({"--checkpoint": [model], "--source": source.local}, {"--out": out})
    started = time.perf_counter()
    parts = len(source.parts)
    dataset = ray.data.range(parts, override_num_blocks=parts)
    dataset = dataset.map_batches(_ReadPart(source), batch_size=None, batch_format="pyarrow").map_batches(
        _Guesser,
        fn_constructor_args=(checkpoint, threads),
        batch_size=ROWS_PER_TASK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
    )
    dataset.context.enable_progress_bars = False
    try:
        dataset = dataset.materialize()
        dataset.write_parquet(out)
    except BaseException:
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        raise
    seconds = time.perf_counter() - started
    drawings = dataset.count()
    return {
        "out": out,
        "checkpoint": model,
        "drawings": drawings,
        "drawings_per_s": round(drawings / seconds, 1),
    }
