"""SketchRNN's `.npz` files: splits, numbers of bad drawings, and files made to do harm."""

import contextlib
import functools
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sketchray import doodles
from sketchray.columns import from_column
from sketchray.errors import DataError
from sketchray.formats import Bad, HostileError
from sketchray.formats.npz import BLOCK_ROWS, read
from sketchray.sketch_rnn import npz

Members = dict[str, bytes]


def drawings(number: int, seed: int = 0) -> list[np.ndarray]:
    return [doodles.draw(doodles.CLASSES[index % 5], index, seed) for index in range(number)]


def encode(items: list[Any], protocol: int = 2) -> bytes:
    """Returns a member as NumPy writes it."""
    array = np.empty(len(items), object)
    for index, item in enumerate(items):
        array[index] = item
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": array.shape})
    return file.getvalue() + pickle.dumps(array, protocol=protocol)


def header(number: int, body: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (number,)})
    return file.getvalue() + body


def archive(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped:
        for split in ("test", "train", "valid"):  # not in the order in which they are read
            zipped.writestr(f"{split}.npy", members.get(split, encode(drawings(2))))
    file.seek(0)
    return file


def flatten(file: io.BytesIO, max_points: int = 10_000) -> tuple[list[tuple[str, list[Any]]], list[Bad]]:
    """Returns the split and the points of each drawing, and what is none."""
    rows, bad, numbers = [], [], []
    for block in read(file, max_points=max_points):
        points, offsets = from_column(block.table["points"])
        assert block.table["class"].null_count == block.table["key_id"].null_count == len(block.table)
        parts = [part.tolist() for part in np.split(points, offsets[1:-1])] if len(block.table) else []
        rows += zip(block.table["split"].to_pylist(), parts, strict=True)
        bad += block.bad
        numbers += block.table["line"].to_pylist() + [number for number, _ in block.bad]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    return rows, bad


def test_the_published_splits_are_kept_in_file_order() -> None:
    splits = {"train": drawings(7), "valid": drawings(3, seed=1), "test": drawings(2, seed=2)}
    rows, bad = flatten(archive(**{split: encode(items) for split, items in splits.items()}))
    assert rows == [(split, item.tolist()) for split, items in splits.items() for item in items]
    assert bad == []


def test_a_true_file(quickdraw_dir: Path | None) -> None:
    if quickdraw_dir is None:  # the files of the other tests stand alone
        return
    path = quickdraw_dir / "npz" / "aaron_sheep.npz"
    expected = np.load(path, allow_pickle=True, encoding="latin1")
    rows, bad = flatten(io.BytesIO(path.read_bytes()))
    assert rows == [(split, item.tolist()) for split in ("train", "valid", "test") for item in expected[split]]
    assert bad == []


def test_bad_drawings_are_numbered_through_the_file_and_their_neighbours_kept() -> None:
    good = drawings(3)
    long = np.zeros((9, 3), np.int16)
    odd = np.array([[1, 2, 3]], np.int16)
    train = [good[0], np.zeros((0, 3), np.int16), good[1], np.zeros((4, 2), np.int16)]
    valid = [long, good[2], np.zeros((2, 3), np.float64), np.array([[40_000, 0, 1]])]
    rows, bad = flatten(archive(train=encode(train), valid=encode(valid), test=encode([odd])), max_points=8)
    short = [item.tolist() for item in good if len(item) <= 8]
    assert [points for _, points in rows] == short
    by_number = dict(bad)
    assert list(by_number) == sorted(by_number)
    assert by_number[2] == "drawing has shape (0, 3); (N, 3) with N >= 1 is needed"
    assert by_number[4] == "drawing has shape (4, 2); (N, 3) with N >= 1 is needed"
    assert by_number[5] == "9 points, at most 8 are accepted"
    assert by_number[7] == "drawing has dtype '<f8'; integers are needed"
    assert "range of int16" in by_number[8]
    assert "pen_up" in by_number[9]
    assert len(rows) + len(bad) == 9


def test_blocks_are_bounded() -> None:
    item = np.array([[1, 2, 1]], np.int16)
    train = encode([item.copy() for _ in range(BLOCK_ROWS + 5)])
    blocks = list(read(archive(train=train), max_points=1000))
    assert [len(block.table) for block in blocks] == [BLOCK_ROWS, 5, 2, 2]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def touch(path: Path) -> dict[str, Any]:
    """Returns objects whose pickles touch a file when they are loaded, one way each."""
    code = f"open({str(path)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {path}"),
        "eval": Call(eval, code),
        "functools.partial": Call(functools.partial(os.system, f"touch {path}")),
        "open": Call(open, str(path), "w"),
        "numpy.memmap": Call(np.memmap, str(path), np.uint8, "w+", 0, (4,)),
        "inside a drawing": np.array([Call(os.system, f"touch {path}")], object),
    }


@pytest.mark.parametrize("way", list(touch(Path())))
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_pickle_that_would_run_code_ends_the_file_with_nothing_read(tmp_path: Path, way: str, split: str) -> None:
    proof = tmp_path / "proof"
    member = encode([touch(proof)[way]])
    blocks = read(archive(**{split: member}), max_points=10)
    with pytest.raises(HostileError, match=rf"{split}\.npy: (asks for|has opcode)"):
        next(blocks)
    assert not proof.exists()
    stream = io.BytesIO(member)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    pickle.load(stream)
    assert proof.exists(), "the file was not hostile, so that the test proved nothing"


STRANGE = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n%b"


@pytest.mark.parametrize(
    "body",
    [
        STRANGE % b"cnumpy\ndtype\nK\x00\x85U\x01b\x87R.",  # an array of a type that is none
        b"\x80\x02ccopyreg\n_reconstructor\n.",
        b"\x80\x02cnumpy.ma.core\n_mareconstruct\n.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x02}.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"]" * 2000 + b".",  # each a list of 56 bytes
        b"(" * 2000 + b".",
        b"\x80\x04" + b"N\x94" * 2000 + b".",
    ],
)
def test_crafted_pickles_are_hostile(body: bytes) -> None:
    with pytest.raises(HostileError):
        next(read(archive(test=header(1, body)), max_points=10))


def test_little_that_becomes_much_is_hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_MEMBER_BYTES", 60_000)
    item = np.zeros((5000, 3), np.int16)
    assert flatten(archive(train=encode([item] * 2, protocol=4)))[1] == []
    with pytest.raises(HostileError, match="repeats drawings"):
        next(read(archive(train=encode([item] * 3, protocol=4)), max_points=10))
    text = b"\x80\x02c_codecs\nencode\nq\x00X\x00\x40\x00\x00%bq\x01X\x06\x00\x00\x00latin1q\x02" % (b"a" * 0x4000)
    with pytest.raises(HostileError, match="repeats texts"):
        next(read(archive(train=header(9, text + b"]" + b"h\x00h\x01h\x02\x86Ra" * 9 + b".")), max_points=10))
    with pytest.raises(HostileError, match="100000 bytes when unpacked; 60000 are allowed"):
        next(read(archive(train=bytes(100_000)), max_points=10))


def test_more_drawings_than_any_class_has_are_hostile() -> None:
    with pytest.raises(HostileError, match="promises 50000000 drawings"):
        next(read(archive(train=header(50_000_000, b"N.")), max_points=10))


def test_a_size_that_a_member_declares_too_small_does_not_unpack_the_rest() -> None:
    # 200 MB of zeros of which the directory admits 1,000 bytes
    data = archive(train=bytes(200_000_000)).getvalue()
    lie = data.replace((200_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != data
    tracemalloc.start()
    with pytest.raises(DataError):
        next(read(io.BytesIO(lie), max_points=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (io.BytesIO(b""), "not an .npz file"),
        (io.BytesIO(b'{"word":"cat"}\n'), "not an .npz file"),
        (io.BytesIO(archive().getvalue()[:-80]), "not an .npz file"),
        (archive(train=b"nonsense"), r"train\.npy: the magic string is not correct"),
        (archive(train=encode(drawings(3))[:-60]), r"train\.npy"),
        (archive(method=zipfile.ZIP_BZIP2), r"train\.npy: is compressed by method 12"),
    ],
)
def test_what_is_no_such_file_is_refused(file: io.BytesIO, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(read(file, max_points=10))
    assert not isinstance(caught.value, HostileError)


SMALL = archive(train=encode(drawings(3))).getvalue()
STORED = archive(zipfile.ZIP_STORED, train=encode(drawings(3), protocol=4)).getvalue()


@given(
    st.sampled_from([SMALL, STORED]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_raises_nothing_else(data: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    check_only_refused(bytes(damaged))


@given(st.binary(max_size=200))
def test_an_arbitrary_pickle_raises_nothing_else(body: bytes) -> None:
    check_only_refused(archive(train=header(3, body)).getvalue())


def check_only_refused(data: bytes) -> None:
    with contextlib.suppress(DataError):
        list(read(io.BytesIO(data), max_points=10_000))
