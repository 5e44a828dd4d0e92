"""What the exercise's answers do in Keras, as a process that trains when it is asked to; benchmarks/train.py starts it.

TensorFlow is no requirement of sketchray, so this runs in an environment of its own:

    python3 -m venv .venv-tf
    .venv-tf/bin/pip install tensorflow-cpu pyarrow
    .venv-tf/bin/python benchmarks/keras_peer.py --data DIR

DIR is what jobs/ingest.py wrote. Each line on stdin is a request, and has one line on stdout for an answer, both JSON:

    {"network": "homl", "batch_size": 32, "drawings": 8192}

trains on that many drawings, from where the last request for this network and batch size left off, and is answered by
`drawings` and `seconds`. With `"anew": true` it starts from new weights; with `"evaluate": true` there is `val_top1`
too, whose time is not counted. The first answer, to nothing, has the versions.

`homl` is the book's network and recipe, `lstm` the usual answer: one LSTM(256), Adam. Drawings are in memory, scaled
and padded before the clock starts, and come by way of tf.data.
Source of `homl`: ageron/handson-ml3, chapter 15, exercise 9.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read by TensorFlow when it is imported

import keras
import tensorflow as tf

MAX_POINTS = 100  # the book cuts off the rest


class Split:
    """The drawings of a split as the book has them in memory.

    Attributes:
        ink: `(B, 100, 3)` float32, steps and pen_up, zero past the end.
        lengths: `(B,)` int32, 100 at most.
        labels: `(B,)` int64.
    """

    def __init__(self, table: pa.Table) -> None:
        column = table["points"].combine_chunks()
        offsets = column.offsets.to_numpy().astype(np.int64)
        ink, lengths = to_ink(column.values.values.to_numpy().reshape(-1, 3), offsets)
        self.ink, self.lengths = tf.constant(ink), tf.constant(lengths)
        self.labels = tf.constant(table["label"].to_numpy().astype(np.int64))

    def batches(self, batch_size: int, *, to_longest: bool, train: bool) -> tf.data.Dataset:
        """Returns batches, shuffled and without end for training.

        Args:
            batch_size: drawings.
            to_longest: pad to the longest drawing of a batch, as the book does, instead of to 100 points.
            train: whether they are for training.
        """
        numbers = tf.data.Dataset.range(len(self.labels))
        if train:
            numbers = numbers.shuffle(len(self.labels)).repeat()

        def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ink = tf.gather(self.ink, rows)
            if to_longest:
                ink = ink[:, : tf.reduce_max(tf.gather(self.lengths, rows))]
            return ink, tf.gather(self.labels, rows)

        dataset = numbers.batch(batch_size, drop_remainder=train)
        return dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def to_ink(
    points: npt.NDArray[np.int16], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Returns `(B, 100, 3)` ink and `(B,)` lengths: each axis scaled to 0..1 by itself, then steps, without the first.

    Source: create_dataset.py of TensorFlow's drawing tutorial, whose files the book reads.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    drawing = np.repeat(np.arange(len(lengths)), lengths)
    # Where a drawing lies is lost by the scaling, so the positions may go on from one drawing to the next.
    position = points[:, :2].astype(np.int64).cumsum(axis=0)
    low = np.minimum.reduceat(position, starts)
    extent = np.maximum.reduceat(position, starts) - low
    scaled = (points[:, :2] / np.where(extent == 0, 1, extent)[drawing]).astype(np.float32)
    place = np.arange(len(points)) - starts[drawing] - 1
    kept = (place >= 0) & (place < MAX_POINTS)
    ink = np.zeros((len(lengths), MAX_POINTS, 3), np.float32)
    ink[drawing[kept], place[kept], :2] = scaled[kept]
    ink[drawing[kept], place[kept], 2] = points[kept, 2]
    return ink, (lengths - 1).clip(1, MAX_POINTS).astype(np.int32)


def build(network: str, num_classes: int, *, jit_compile: bool) -> keras.Model:
    """Returns a compiled network."""
    layers = keras.layers
    if network == "homl":
        model = keras.Sequential(
            [
                layers.Conv1D(32, kernel_size=5, strides=2, activation="relu"),
                layers.BatchNormalization(),
                layers.Conv1D(64, kernel_size=5, strides=2, activation="relu"),
                layers.BatchNormalization(),
                layers.Conv1D(128, kernel_size=3, strides=2, activation="relu"),
                layers.BatchNormalization(),
                layers.LSTM(128, return_sequences=True),
                layers.LSTM(128),
                layers.Dense(num_classes, activation="softmax"),
            ]
        )
        optimizer = keras.optimizers.SGD(learning_rate=1e-2, clipnorm=1.0)
        metrics = ["accuracy", "sparse_top_k_categorical_accuracy"]
    else:
        model = keras.Sequential([layers.LSTM(256), layers.Dense(num_classes, activation="softmax")])
        optimizer = keras.optimizers.Adam()
        metrics = ["accuracy"]
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer, metrics=metrics, jit_compile=jit_compile)
    return model


def main() -> None:
    """Reads the data and answers until stdin ends."""
    parser = argparse.ArgumentParser(description="Keras networks that train when asked to.")
    parser.add_argument("--data", type=Path, required=True, help="directory that jobs/ingest.py wrote")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--jit-compile", action="store_true", help="compile with XLA; then all are padded to 100")
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what Keras prints is no answer
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    keras.utils.set_random_seed(0)

    table = pa.concat_tables(
        pq.read_table(path, columns=["points", "label", "split"]) for path in sorted(arguments.data.glob("*.parquet"))
    )
    num_classes = len(json.loads((arguments.data / "manifest.json").read_text())["classes"])
    train, valid = (Split(table.filter(pa.compute.equal(table["split"], split))) for split in ("train", "valid"))
    models: dict[tuple[str, int], keras.Model] = {}
    print(json.dumps({"tensorflow": tf.__version__, "keras": keras.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        network, batch_size = request["network"], request["batch_size"]
        to_longest = network == "homl" and not arguments.jit_compile
        dataset = train.batches(batch_size, to_longest=to_longest, train=True)
        model = models.get((network, batch_size))
        if model is None or request.get("anew"):
            model = models[network, batch_size] = build(network, num_classes, jit_compile=arguments.jit_compile)
            model.fit(dataset, steps_per_epoch=4, verbose=0)  # traces the graph
        steps = max(1, request["drawings"] // batch_size)
        started = time.perf_counter()
        model.fit(dataset, steps_per_epoch=steps, verbose=0)
        answer = {"drawings": steps * batch_size, "seconds": time.perf_counter() - started}
        if request.get("evaluate"):
            found = model.evaluate(valid.batches(256, to_longest=to_longest, train=False), verbose=0, return_dict=True)
            answer["val_top1"] = found["accuracy"]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
