"""The exercise's usual answer, with the data set that it names: a Keras LSTM(256) on `sketch_rnn/quickdraw`.

TensorFlow is no requirement of sketchray, so this runs in an environment of its own:

    python3 -m venv .venv-tf
    .venv-tf/bin/pip install tensorflow-cpu tensorflow-datasets importlib_resources
    .venv-tf/bin/pip install --no-deps --editable .
    .venv-tf/bin/python benchmarks/tfds_keras.py --simplified $QUICKDRAW_DIR/simplified

`--simplified` takes simplified ndjson files, one for each of the 345 classes, in the bucket's place: 80, 10 and 10 % of
each, in file order, are written as SketchRNN's files first. `--manual-dir` takes SketchRNN's own files. With neither,
TFDS downloads them. The table has the mean loss and the speed of each tenth of the steps; guessing has a loss of 5.84.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

import sketchray.sketch_rnn  # noqa: F401 # registers the data set
from sketchray.sketch_rnn.dummy_data_generation import write_npz
from sketchray.strokes import from_record

STEP = (40.0, 40.0, 1.0)  # what the numbers of a point are divided by: pixels of a long step, and of `pen_up` nothing


def convert(source: Path, folder: Path) -> None:
    """Writes each class of simplified ndjson as a SketchRNN file."""
    for path in sorted(source.glob("*.ndjson")):
        drawings = [from_record(json.loads(line)["drawing"]) for line in path.read_text().splitlines()]
        ends = [0, *(len(drawings) * tenths // 10 for tenths in (8, 9, 10))]
        parts = [drawings[start:end] for start, end in pairwise(ends)]
        write_npz(folder / f"{path.stem}.npz", dict(zip(("train", "valid", "test"), parts, strict=True)))


def to_batches(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Returns padded batches, without end: `(B, T, 3)` float32 and `(B,)` labels."""
    scaled = dataset.map(lambda example: (tf.cast(example["drawing"], tf.float32) / STEP, example["label"]))
    return scaled.repeat().padded_batch(batch_size).prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Loads, trains and prints the table."""
    parser = argparse.ArgumentParser(description="Keras LSTM(256) on sketch_rnn/quickdraw.")
    parser.add_argument("--simplified", type=Path, help="folder of simplified ndjson files")
    parser.add_argument("--manual-dir", type=Path, help="folder of SketchRNN's .npz files")
    parser.add_argument("--data-dir", help="where TFDS keeps data sets; a temporary folder if not given")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    tfds.disable_progress_bar()

    with tempfile.TemporaryDirectory() as temporary:
        manual_dir = arguments.manual_dir
        if arguments.simplified:
            manual_dir = Path(temporary, "npz")
            manual_dir.mkdir()
            convert(arguments.simplified, manual_dir)
        started = time.perf_counter()
        dataset, info = tfds.load(
            "sketch_rnn/quickdraw",
            split="train",
            with_info=True,
            data_dir=arguments.data_dir or temporary,
            download_and_prepare_kwargs={"download_config": tfds.download.DownloadConfig(manual_dir=manual_dir)},
        )
        loaded = time.perf_counter() - started
        labels = info.features["label"].num_classes
        network = keras.Sequential([keras.layers.Masking(), keras.layers.LSTM(256), keras.layers.Dense(labels)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(optimizer="adam", loss=loss)

        print(f"{info.full_name}: { {name: split.num_examples for name, split in info.splits.items()} }")
        print(f"{labels} classes; built and loaded in {loaded:.1f} s")
        print(f"tensorflow {tf.__version__}, keras {keras.__version__}, tensorflow_datasets {tfds.__version__}")
        print(f"{'steps':<12}{'loss':>8}{'drawings/s':>14}")
        batches = iter(to_batches(dataset, arguments.batch_size))
        tenth = max(arguments.steps // 10, 1)
        for first in range(0, arguments.steps, tenth):
            losses, started = [], time.perf_counter()
            for _ in range(tenth):
                losses.append(float(network.train_on_batch(*next(batches))))
                network.reset_metrics()  # or Keras returns the mean over all steps so far
            rate = tenth * arguments.batch_size / (time.perf_counter() - started)
            print(f"{f'{first + 1}-{first + tenth}':<12}{sum(losses) / tenth:>8.3f}{rate:>14,.0f}", flush=True)


if __name__ == "__main__":
    main()
