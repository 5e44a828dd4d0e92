"""Two other ways to turn simplified ndjson into files for training; `benchmarks/ingest.py` runs each as a process.

    python benchmarks/ingest_peers.py --peer loop --source DIR --out DIR
    .venv-tf/bin/python benchmarks/ingest_peers.py --peer tutorial --source DIR --out DIR

`loop` is what one writes first: `json.loads` and NumPy for each drawing, all of them in memory, shuffled and written as
the same shards as ours. `tutorial` does what TensorFlow's recurrent_quickdraw tutorial does: a TF Example for each
drawing, in ten TFRecord files. It needs TensorFlow, in the environment that benchmarks/tfds_keras.py describes.

Both print one JSON object: `drawings` read; `seconds` from the first byte read to the last file closed, imports not
counted; and `parse_seconds`, from lines to arrays.
"""

import argparse
import json
import random
import time
from contextlib import ExitStack
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TUTORIAL_SHARDS = 10  # the script's default. Source: create_dataset.py, tensorflow/models, tutorials/rnn/quickdraw
TRAINING_SHARE = 0.8

Drawing = tuple[str, int, bool | None, npt.NDArray[np.int16]]  # class, key, recognized, points


def run_loop(source: Path, out: Path) -> dict[str, float]:
    """Writes shards as `sketchray.ingest` does, one drawing at a time."""
    import pyarrow as pa  # imported here, since TensorFlow's environment lacks what `shards` needs
    import pyarrow.parquet as pq

    from sketchray.columns import to_column
    from sketchray.shards import ROW_GROUP, SPLITS, make_schema

    started = time.perf_counter()
    read: list[Drawing] = []
    for path in sorted(source.glob("*.ndjson")):
        with path.open("rb") as file:
            read += map(to_points, file)
    parsed = time.perf_counter()

    drawings = list({(drawing[0], drawing[3].tobytes()): drawing for drawing in read}.values())  # without duplicates
    random.Random(0).shuffle(drawings)
    classes = sorted({drawing[0] for drawing in drawings})
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[Drawing]] = {split: [] for split in SPLITS}
    for drawing in drawings:
        share = int.from_bytes(blake2b(b"%d" % drawing[1], digest_size=8).digest()) / 2**64
        splits["train" if share < TRAINING_SHARE else "valid" if share < 0.9 else "test"].append(drawing)
    schema = make_schema(classes, {"source": str(source)})
    num_shards = -(-len(drawings) // 32_768)
    out.mkdir(parents=True)
    for number in range(num_shards):
        path = out / f"shard-{number:05d}-of-{num_shards:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["split", "label"]) as writer:
            for split in SPLITS:
                mine = splits[split][number::num_shards]
                for start in range(0, len(mine), ROW_GROUP):
                    words, keys, recognized, points = zip(*mine[start : start + ROW_GROUP], strict=True)
                    columns = [
                        to_column(np.concatenate(points), np.cumsum([0, *map(len, points)])),
                        pa.array([label_of[word] for word in words], pa.int16()),
                        pa.array(keys, pa.uint64()),
                        pa.array(recognized, pa.bool_()),
                        pa.array([split] * len(words), pa.string()),
                    ]
                    writer.write_table(pa.table(columns, schema=schema))
    return {"drawings": len(read), "seconds": time.perf_counter() - started, "parse_seconds": parsed - started}


def to_points(line: bytes) -> Drawing:
    """Returns the drawing of a record, with `(N, 3)` stroke-3 points."""
    record = json.loads(line)
    x: list[int] = []
    y: list[int] = []
    ends = []
    for stroke in record["drawing"]:
        x += stroke[0]
        y += stroke[1]
        ends.append(len(x) - 1)
    points = np.zeros((len(x), 3), np.int16)
    points[:, 0], points[:, 1] = x, y
    points[1:, :2] -= points[:-1, :2]
    points[ends, 2] = 1
    return record["word"], int(record["key_id"]), record.get("recognized"), points


def run_tutorial(source: Path, out: Path) -> dict[str, float]:
    """Writes `training.tfrecord-*` and `eval.tfrecord-*`, with the classes beside them.

    As in the tutorial, lines come from all files in random order and go to random shards, training first. The number of
    lines of a file, which is a flag there, is counted before the clock starts.
    """
    import tensorflow as tf  # in an environment of its own

    paths = sorted(source.glob("*.ndjson"))
    lines = {path: path.read_bytes().count(b"\n") for path in paths}
    training = {path: int(number * TRAINING_SHARE) for path, number in lines.items()}
    evaluation = {path: lines[path] - training[path] for path in paths}
    out.mkdir(parents=True)
    chance = random.Random(0)
    parse_s = 0.0
    drawings = 0
    label_of: dict[str, int] = {}
    started = time.perf_counter()
    for name, counts, skipped in (("training", training, dict.fromkeys(paths, 0)), ("eval", evaluation, training)):
        with ExitStack() as stack:
            readers = {path: stack.enter_context(tf.io.gfile.GFile(str(path), "r")) for path in paths}
            for path, reader in readers.items():
                for _ in range(skipped[path]):
                    reader.readline()
            shards = [f"{out}/{name}.tfrecord-{i:05d}-of-{TUTORIAL_SHARDS:05d}" for i in range(TUTORIAL_SHARDS)]
            writers = [stack.enter_context(tf.io.TFRecordWriter(shard)) for shard in shards]
            order = list(chain.from_iterable([path] * count for path, count in counts.items()))
            chance.shuffle(order)
            for path in order:
                line = readers[path].readline()
                before = time.perf_counter()
                word, ink = to_ink(line)
                parse_s += time.perf_counter() - before
                example = make_example(tf, ink, label_of.setdefault(word, len(label_of)))
                chance.choice(writers).write(example.SerializeToString())
                drawings += 1
        (out / f"{name}.tfrecord.classes").write_text("".join(f"{word}\n" for word in label_of))
    return {"drawings": drawings, "seconds": time.perf_counter() - started, "parse_seconds": parse_s}


def to_ink(line: str) -> tuple[str, npt.NDArray[np.float32]]:
    """Returns the class and the `(N - 1, 3)` ink of a record: each axis scaled to 0..1 by itself, then steps."""
    record = json.loads(line)
    strokes = record["drawing"]
    ink = np.zeros((sum(len(stroke[0]) for stroke in strokes), 3), np.float32)
    end = 0
    for stroke in strokes:
        start, end = end, end + len(stroke[0])
        ink[start:end, 0], ink[start:end, 1] = stroke[0], stroke[1]
        ink[end - 1, 2] = 1
    lowest = ink[:, :2].min(axis=0)
    extent = ink[:, :2].max(axis=0) - lowest
    extent[extent == 0] = 1
    ink[:, :2] = (ink[:, :2] - lowest) / extent
    ink[1:, :2] -= ink[:-1, :2]
    return record["word"], ink[1:]


def make_example(tf: Any, ink: npt.NDArray[np.float32], label: int) -> Any:
    """Returns a TF Example of the tutorial's three features."""
    feature = {
        "ink": tf.train.Feature(float_list=tf.train.FloatList(value=ink.flatten())),
        "shape": tf.train.Feature(int64_list=tf.train.Int64List(value=ink.shape)),
        "class_index": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature))


def main() -> None:
    """Runs one peer and prints what it took."""
    parser = argparse.ArgumentParser(description="Peers of the ingest benchmark.")
    parser.add_argument("--peer", choices=("loop", "tutorial"), required=True)
    parser.add_argument("--source", type=Path, required=True, help="folder of simplified ndjson files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    arguments = parser.parse_args()
    run = {"loop": run_loop, "tutorial": run_tutorial}[arguments.peer]
    print(json.dumps(run(arguments.source, arguments.out)))


if __name__ == "__main__":
    main()
