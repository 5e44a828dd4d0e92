"""The reader of SketchRNN's pickled `.npz` files: files of the published layout, hostile ones and damaged ones."""

import functools
import io
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

import sketchray.sketch_rnn
from sketchray.sketch_rnn import npz
from sketchray.sketch_rnn.dummy_data_generation import encode_npy, make_drawings, write_npz
from sketchray.sketch_rnn.npz import SPLITS, read_npz

PACKAGE = pathlib.Path(sketchray.sketch_rnn.__file__).parent
DUMMY_DATA = PACKAGE / "dummy_data"
SHEEP = PACKAGE.parents[1] / os.environ.get("QUICKDRAW_DIR", "../shared/data/quickdraw") / "npz/aaron_sheep.npz"


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
