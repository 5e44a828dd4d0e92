"""The TensorFlow Datasets builder, without TensorFlow.

TFDS's own test of a builder needs TensorFlow; it is sketchray/sketch_rnn/sketch_rnn_dataset_builder_test.py.
"""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

import sketchray.sketch_rnn
from sketchray.sketch_rnn import Builder, SketchRnnConfig, dummy_data_generation
from sketchray.sketch_rnn.dummy_data_generation import DRAWINGS, make_drawings, write_npz
from sketchray.sketch_rnn.npz import SPLITS, read_npz
from sketchray.sketch_rnn.sketch_rnn_dataset_builder import BASE_URL, CLASSES

PACKAGE = pathlib.Path(sketchray.sketch_rnn.__file__).parent
DUMMY_DATA = PACKAGE / "dummy_data"
ROOT = PACKAGE.parents[1]
ARRAY_RECORD = {"file_format": "array_record"}
NAMES = ["The Eiffel Tower", "hexagon", "square"]  # those of the dummy data, in the order of their labels
DUMMY = SketchRnnConfig(name="dummy", classes=("square", "hexagon", "The Eiffel Tower"))

tfds.disable_progress_bar()


def from_manual_dir(folder):
    return {"download_config": tfds.download.DownloadConfig(manual_dir=folder)}


@contextlib.contextmanager
def serve(folder):
    """Yields the URL of a folder on a web server."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = Builder(data_dir=folder, config=DUMMY, **ARRAY_RECORD)
    builder.download_and_prepare(**from_manual_dir(DUMMY_DATA))
    return folder


@pytest.fixture(scope="module")
def all_classes(tmp_path_factory):
    """A folder with a small file for each of the 345 classes."""
    folder = tmp_path_factory.mktemp("all")
    for seed, name in enumerate(CLASSES):
        write_npz(folder / f"{name}.npz", make_drawings(3 + seed % 9, {"train": 2, "valid": 1, "test": 1}, seed))
    return folder


def test_one_import_lets_tfds_find_the_name(tmp_path):
    code = f"""
import sys, sketchray.sketch_rnn, tensorflow_datasets as tfds
builder = tfds.builder("sketch_rnn/quickdraw", data_dir={str(tmp_path)!r})
assert "sketch_rnn" in tfds.list_builders(with_community_datasets=False)
assert not {{"tensorflow", "torch", "ray"}} & set(sys.modules), "importing the builder must be light"
print(builder.info.full_name, type(builder) is sketchray.sketch_rnn.Builder)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["sketch_rnn/quickdraw/1.0.0", "True"]


def test_info_describes_the_published_data(tmp_path):
    builder = tfds.builder("sketch_rnn", data_dir=tmp_path)
    info = builder.info
    assert builder.builder_config.name == "quickdraw"
    assert builder.builder_config.file_url("The Eiffel Tower") == f"{BASE_URL}/The%20Eiffel%20Tower.npz"
    assert info.features["drawing"].shape == (None, 3)
    assert info.features["drawing"].np_dtype == np.int16
    assert all(word in info.features["drawing"].doc.desc for word in ("dx", "dy", "pen_up"))
    bitmap_labels = tfds.core.tfds_path("datasets/quickdraw_bitmap/labels.txt").read_text().splitlines()
    assert info.features["label"].names == list(CLASSES) == sorted(bitmap_labels)
    assert len(CLASSES) == 345
    assert info.supervised_keys == ("drawing", "label")
    assert "1704.03477" in info.citation
    assert str(builder.version) in builder.RELEASE_NOTES
    metadata = Builder.get_metadata()
    assert metadata.tags
    assert set(metadata.tags) <= set(tfds.core.dataset_metadata.valid_tags())
    assert all(number in metadata.description for number in ("345 classes", "75,000", "70,000", "2,500"))
    # TFDS finds checksums.tsv, be it empty.
    assert set(Builder.url_infos) <= {builder.builder_config.file_url(name) for name in CLASSES}


def test_dummy_data_is_what_the_generator_writes(tmp_path):
    dummy_data_generation.main(tmp_path)
    written, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, DUMMY_DATA))
    assert written == kept


def test_every_drawing_is_built_and_read_back(data_dir):
    sources = tfds.data_source("sketch_rnn", data_dir=data_dir, builder_kwargs={"config": DUMMY})
    assert list(sources) == list(SPLITS)
    seen = {}
    for split, source in sources.items():
        assert all(example["drawing"].dtype == np.int16 for example in source)
        examples = [(example["label"], example["drawing"].tobytes()) for example in source]
        files = [read_npz(DUMMY_DATA / f"{name}.npz")[split] for name in NAMES]
        expected = [(label, drawing.tobytes()) for label, file in enumerate(files) for drawing in file]
        assert sorted(examples) == sorted(expected)
        assert examples != expected, "TFDS shuffles by key"
        seen[split] = set(examples)
    assert not any(a & b for a, b in itertools.combinations(seen.values(), 2)), "splits overlap"


def test_a_reloaded_builder_knows_its_splits_and_labels(data_dir):
    from_code, from_files = (
        Builder(data_dir=data_dir, config=DUMMY),
        tfds.builder("sketch_rnn/dummy", data_dir=data_dir),
    )
    for builder in (from_code, from_files):
        counts = {split: info.num_examples / len(NAMES) for split, info in builder.info.splits.items()}
        assert counts == DRAWINGS
        assert builder.info.features["label"].names == NAMES
        assert builder.as_data_source("test")[0]["drawing"].shape[1] == 3


def test_keys_are_unique_and_hold_no_path(tmp_path):
    paths = {name: DUMMY_DATA / f"{name}.npz" for name in NAMES}
    generate = Builder(data_dir=tmp_path, config=DUMMY)._generate_examples
    keys = [key for split in SPLITS for key, _ in generate(paths, split)]
    assert len(set(keys)) == len(keys) == sum(DRAWINGS.values()) * len(NAMES)
    assert keys[0] == "The Eiffel Tower_train_0"


def test_all_345_classes_through_the_name(tmp_path, all_classes):
    prepare = {"builder_kwargs": ARRAY_RECORD, "download_and_prepare_kwargs": from_manual_dir(all_classes)}
    source = tfds.data_source("sketch_rnn/quickdraw", split="train", data_dir=tmp_path, **prepare)
    assert np.bincount([example["label"] for example in source]).tolist() == [2] * 345
    again = tfds.data_source("sketch_rnn/quickdraw", split="test", data_dir=tmp_path)
    assert len(again) == 345


def test_load_resolves_the_name(tmp_path, all_classes):
    arguments = {"data_dir": tmp_path, "download_and_prepare_kwargs": from_manual_dir(all_classes)}
    if importlib.util.find_spec("tensorflow"):
        dataset, info = tfds.load("sketch_rnn/quickdraw", split="train", with_info=True, **arguments)
        assert len(dataset) == info.splits["train"].num_examples == 2 * 345
    else:  # the name resolves, the files are read, and only the writing of TFRecord misses TensorFlow
        with pytest.raises(ModuleNotFoundError, match="tensorflow"):
            tfds.load("sketch_rnn/quickdraw", split="train", with_info=True, **arguments)


def test_files_are_downloaded_where_manual_dir_was_not_asked_for(tmp_path):
    other = tmp_path / "downloads/manual/imagenet.tar"  # the default manual_dir, with a file of another dataset
    other.parent.mkdir(parents=True)
    other.touch()
    with serve(DUMMY_DATA) as url:
        mirror = SketchRnnConfig(name="mirror", classes=DUMMY.classes, url=url)
        source = tfds.data_source("sketch_rnn", data_dir=tmp_path, builder_kwargs={"config": mirror, **ARRAY_RECORD})
    assert len(source["train"]) == DRAWINGS["train"] * len(NAMES)


def test_checksums_that_were_registered_are_verified(tmp_path):
    # Registration writes beside the builder: into a copy of it here.
    shutil.copytree(ROOT / "sketchray", tmp_path / "sketchray", ignore=shutil.ignore_patterns("__pycache__"))
    files = shutil.copytree(DUMMY_DATA, tmp_path / "files")
    code = """
import sys, tensorflow_datasets as tfds
from sketchray.sketch_rnn import SketchRnnConfig
url, data_dir, register, *classes = sys.argv[1:]
config = tfds.download.DownloadConfig(register_checksums=register == "register")
mirror = SketchRnnConfig(name="mirror", classes=classes, url=url)
builder = tfds.builder("sketch_rnn", config=mirror, data_dir=data_dir, file_format="array_record")
builder.download_and_prepare(download_config=config)
"""

    def build(url, data_dir, register):
        command = [sys.executable, "-c", code, url, str(tmp_path / data_dir), register, *NAMES]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    with serve(files) as url:
        done = build(url, "first", "register")
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "sketchray/sketch_rnn/checksums.tsv").read_text().splitlines()
        registered = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
        assert registered == {
            f"{url}/{name.replace(' ', '%20')}.npz": hashlib.sha256((files / f"{name}.npz").read_bytes()).hexdigest()
            for name in NAMES
        }
        assert build(url, "second", "verify").returncode == 0
        shutil.copy(files / "square.npz", files / "hexagon.npz")
        changed = build(url, "third", "verify")
    assert changed.returncode == 1
    assert "NonMatchingChecksumError" in changed.stderr
    assert "hexagon.npz" in changed.stderr


def test_a_manual_dir_without_a_class_says_which_where_and_what_to_do(tmp_path):
    builder = tfds.builder("sketch_rnn/quickdraw", data_dir=tmp_path, **ARRAY_RECORD)
    with pytest.raises(FileNotFoundError, match=r"lacks 342 of 345 classes: The Great Wall of China\.npz") as caught:
        builder.download_and_prepare(**from_manual_dir(DUMMY_DATA))
    assert all(words in str(caught.value) for words in (str(DUMMY_DATA), BASE_URL, "SketchRnnConfig("))
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(AssertionError, match=f"{folder} does not exist or is empty"):
            builder.download_and_prepare(**from_manual_dir(folder))


@pytest.mark.parametrize("classes", [("cat", "octopuss"), (), "cat"])
def test_a_config_with_impossible_classes_is_refused(classes):
    with pytest.raises(ValueError, match="classes"):
        SketchRnnConfig(name="typo", classes=classes)
