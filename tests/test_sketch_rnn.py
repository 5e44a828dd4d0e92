"""The TensorFlow Datasets builder, and its reader of pickled `.npz` files. Runs without TensorFlow.

The builder's tests follow `tfds.testing.DatasetBuilderTestCase`, which needs TensorFlow.
"""

import functools
import http.server
import importlib.util
import io
import itertools
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

import sketchray.sketch_rnn
from sketchray.sketch_rnn import Builder, SketchRnnConfig, dummy_data_generation, npz
from sketchray.sketch_rnn.dummy_data_generation import DRAWINGS, encode_npy, make_drawings, write_npz
from sketchray.sketch_rnn.npz import SPLITS, read_npz
from sketchray.sketch_rnn.sketch_rnn_dataset_builder import BASE_URL, CLASSES

PACKAGE = pathlib.Path(sketchray.sketch_rnn.__file__).parent
DUMMY_DATA = PACKAGE / "dummy_data"
ROOT = PACKAGE.parents[1]
SHEEP = ROOT / os.environ.get("QUICKDRAW_DIR", "../shared/data/quickdraw") / "npz/aaron_sheep.npz"
ARRAY_RECORD = {"file_format": "array_record"}
NAMES = ["The Eiffel Tower", "hexagon", "square"]  # those of the dummy data, in the order of their labels
DUMMY = SketchRnnConfig(name="dummy", classes=("square", "hexagon", "The Eiffel Tower"))

tfds.disable_progress_bar()


def from_manual_dir(folder):
    return {"download_config": tfds.download.DownloadConfig(manual_dir=folder)}


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
    assert "70,000" in metadata.description
    assert Builder.url_infos == {}  # checksums.tsv is there, is found, and is empty


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
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=DUMMY_DATA)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = SketchRnnConfig(name="mirror", classes=DUMMY.classes, url=f"http://127.0.0.1:{server.server_port}")
        source = tfds.data_source("sketch_rnn", data_dir=tmp_path, builder_kwargs={"config": mirror, **ARRAY_RECORD})
        server.shutdown()
    assert len(source["train"]) == DRAWINGS["train"] * len(NAMES)


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


def read_members(tmp_path, train, **others):
    """Reads a file whose `train.npy` has these bytes."""
    path, good = tmp_path / "cat.npz", encode_npy(as_objects([[[1, 2, 0], [3, 4, 1]]]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"train": train, "valid": good, "test": good, **others}.items():
            archive.writestr(f"{name}.npy", data)
    return read_npz(path)


def as_objects(drawings, dtype=np.int16):
    array = np.empty(len(drawings), dtype=object)
    for i, drawing in enumerate(drawings):
        array[i] = np.asarray(drawing, dtype=dtype)
    return array


def npy(body, shape=(1,), descr="|O"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


class Call:
    """Pickles as a call of `function`, and of `__setstate__` of what it returns: whatever a hostile file likes."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = function, arguments, state

    def __reduce__(self):
        return self.reduced


def test_reads_a_file_of_the_published_layout(tmp_path):
    if SHEEP.exists():
        path, expected = SHEEP, np.load(SHEEP, allow_pickle=True, encoding="latin1")
    else:
        expected = make_drawings(5, {"train": 7400, "valid": 300, "test": 300}, seed=0)
        write_npz(path := tmp_path / "sheep.npz", expected)
    drawings = read_npz(path)
    assert {split: len(items) for split, items in drawings.items()} == {"train": 7400, "valid": 300, "test": 300}
    for split in SPLITS:
        assert all(map(np.array_equal, drawings[split], expected[split]))
        assert all(drawing.dtype == np.int16 and drawing.flags.writeable for drawing in drawings[split])
    with path.open("rb") as file:
        alone = read_npz(file, splits=("test",))
    assert list(alone) == ["test"]
    assert len(alone["test"]) == 300


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["int8", "<i2", ">i2", "int32", "uint64"])
def test_reads_what_python_3_writes(tmp_path, protocol, dtype):
    # Long enough that protocol 4 frames it; once in Fortran order.
    points = np.asarray([[1, 2, 0], [3, 4, 1]] * 40, dtype=dtype)
    array = as_objects([points, points], dtype)
    array[1] = np.asfortranarray(points)
    for drawing in read_members(tmp_path, npy(pickle.dumps(array, protocol=protocol), (2,)))["train"]:
        assert drawing.dtype == np.int16
        assert drawing.tolist() == points.tolist()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_would_run_code_is_refused(tmp_path, protocol, nested):
    proof = tmp_path / "proof"
    call = Call(os.system, f"touch {proof}")
    array = np.array([Call(np.ndarray, Call(tuple, [call])) if nested else call], dtype=object)
    body = pickle.dumps(array, protocol=protocol)
    with pytest.raises(ValueError, match=r"cat\.npz: train\.npy: (asks for|has opcode)"):
        read_members(tmp_path, npy(body))
    assert not proof.exists()
    try:
        pickle.loads(body)
    except TypeError:
        assert nested  # ndarray does not like what tuple makes of the status, but by then the command has run
    assert proof.exists(), "the file was not hostile, so that the test proved nothing"


def dtype_of(code, order, flags=0, subarray=None):
    return Call(np.dtype, code, False, True, state=(3, order, subarray, None, None, -1, -1, flags))


def array_of(shape, dtype, data):
    return Call(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


def one(item):
    """Returns the `.npy` file of an array that holds one object."""
    return npy(pickle.dumps(array_of((1,), dtype_of("O8", "|", 63), [item]), protocol=4))


INT16 = dtype_of("i2", "<")
POINTERS = array_of((2,), dtype_of("O8", "|", flags=0), bytes(16))  # NumPy would take these bytes for two addresses
BOMB = functools.reduce(lambda inner, _: (inner, inner), range(64), ())  # a tuple of 2 ** 64 leaves


def test_the_crafted_pickles_below_are_sound_but_for_their_point(tmp_path):
    sound = one(array_of((1, 3), INT16, struct.pack("<3h", -1, 2, 1)))
    assert read_members(tmp_path, sound)["train"][0].tolist() == [[-1, 2, 1]]


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (one(POINTERS), "O8"),
        (npy(pickle.dumps(POINTERS)), "not an array of objects"),
        (one(array_of((1, 3), dtype_of("i2", "<", subarray=("i2", (3,))), b"")), "plain dtypes"),
        (one(array_of(BOMB, INT16, b"")), "shape"),
        (one(array_of((2, 3), INT16, bytes(6))), "drawing 0 has 3 values"),
        (one(np.load), "asks for numpy.load"),
        (one(np.ndarray.tofile), "asks for builtins.getattr"),
        (npy(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."), "asks for numpy.ndarray.tofile"),
        (npy(b"(iposix\nsystem\n."), "opcode"),
        (npy(b"\x82\x01."), "opcode"),  # the extension registry, which does not ask find_class again
        (npy(b"\x80\x02]repla."), "not an array"),  # for which CPython's C unpickler takes 26 GB
        (npy(b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."), "opcode"),  # a bytearray of 2 ** 56 bytes
        (npy(b"\x80\x02T\xff\xff\xff\x7f."), "Ran out of input|exhausted|EOFError"),
        (one(1), "drawing 0 is not an array"),
        (npy(b"\x80\x02"), "Ran out of input|EOFError"),
        (encode_npy(as_objects([[[1, 2, 1]]])) + b"more", "bytes after them"),
        (encode_npy(as_objects([[[1, 2, 1]]])).replace(b"(1,)", b"(2,)"), "the header promises 2 drawings"),
        (encode_npy(as_objects([[[1, 2]]])), r"drawing 0 has shape \(1, 2\)"),
        (encode_npy(as_objects([[[1, 2, 1]], np.zeros((0, 3))])), r"drawing 1 has shape \(0, 3\)"),
        (encode_npy(as_objects([[[1, 2, 1]]], np.float32)), "dtype '<f4'; integers"),
        (encode_npy(as_objects([[[1, 40000, 1]]], np.int32)), "range of int16"),
        (encode_npy(as_objects([[[1, 2, 1]], [[1, 2, 0], [3, 4, 2]]])), "drawing 1: pen_up"),
        (npy(bytes(120), (4, 5, 3), "<i2"), r"\(4, 5, 3\) array of int16"),
        (npy(b"", (4,), [("a", "|O")]), "a list of drawings"),
        (b"", "magic"),
    ],
)
def test_hostile_and_malformed_members_are_refused(tmp_path, train, reason):
    with pytest.raises(ValueError, match=rf"cat\.npz: train\.npy: .*({reason})"):
        read_members(tmp_path, train)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = (DUMMY_DATA / "square.npz").read_bytes()
    path = tmp_path / "cat.npz"
    for damaged in (b"", b"<html>", whole[:-100], whole[:500] + b"\x99" + whole[501:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cat\.npz"):
            read_npz(path)
    with pytest.raises(ValueError, match=r"cat\.npz: holds .*mean\.npy"):
        read_members(tmp_path, encode_npy(as_objects([[[1, 2, 1]]])), mean=b"")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "nowhere.npz")


def test_a_member_that_unpacks_to_more_than_any_class_has_is_refused(monkeypatch):
    monkeypatch.setattr(npz, "MAX_MEMBER_BYTES", 500)
    with pytest.raises(ValueError, match=r"square\.npz: train\.npy: \d+ bytes when unpacked; 500 are allowed"):
        read_npz(DUMMY_DATA / "square.npz")
