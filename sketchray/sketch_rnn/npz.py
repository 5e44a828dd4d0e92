"""Reads SketchRNN's `.npz` files, which hold pickles, without running anything that is in them.

A file holds one class: `train.npy`, `valid.npy` and `test.npy`, each a pickled object array of int16 `(N, 3)` arrays,
written by Python 2. `numpy.load(allow_pickle=True)` would run whatever code a file carries. To admit NumPy's own
constructors and nothing else is not safe either: with `numpy.dtype.__setstate__` a pickle can clear the flags of
`object`, after which NumPy takes bytes of the file for pointers and crashes. So the admitted names resolve to inert
stand-ins that only record what they are called with, and the arrays are built here, from checked fields.

Shapes: N points of a drawing.
"""

import io
import os
import pickle
import reprlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Never

import numpy as np
import numpy.typing as npt

Int16Array = npt.NDArray[np.int16]

SPLITS = ("train", "valid", "test")

# 70,000 drawings of 250 points are 105 MB. Source: quickdraw-dataset README; `max_seq_len` in Magenta's sketch_rnn.
MAX_MEMBER_BYTES = 1 << 30

_INTEGERS = {
    f"{order}{kind}{size}": np.dtype(f"{order}{kind}{size}")
    for order in "<>|"
    for kind in "iu"
    for size in (1, 2, 4, 8)
}


def read_npz(
    source: str | os.PathLike[str] | BinaryIO, *, splits: Sequence[str] = SPLITS
) -> dict[str, list[Int16Array]]:
    """Returns the drawings of each of `splits`, in the file's order.

    A drawing is `(N, 3)` int16, N >= 1: `dx, dy` in pixels from the point before, and `pen_up`, which is 1 on the last
    point of a stroke and else 0. Source: "A note on formats" in Magenta's sketch_rnn/utils.py.

    Args:
        source: A path, or a binary file that can seek.
        splits: Which of `SPLITS` to read; the others are not unpacked.

    Raises:
        ValueError: The file is hostile, damaged or of another layout. The message names the file and the member.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", repr(source))
    expected = [f"{split}.npy" for split in SPLITS]
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{name}: not an .npz file ({error}); download it again") from error
    with archive:
        if sorted(archive.namelist()) != sorted(expected):
            raise ValueError(f"{name}: holds {sorted(archive.namelist())}, but a SketchRNN file holds {expected}")
        drawings = {}
        for split in splits:
            try:
                drawings[split] = _read_member(archive, f"{split}.npy")
            except OSError:
                raise
            except Exception as error:  # a crafted pickle, header or deflate stream may fail in any way
                reason = str(error) or type(error).__name__
                raise ValueError(f"{name}: {split}.npy: {reason}") from error
    return drawings


def _read_member(archive: zipfile.ZipFile, member: str) -> list[Int16Array]:
    size = archive.getinfo(member).file_size  # zipfile unpacks no more than this, and checks the CRC at its end
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{size} bytes when unpacked; {MAX_MEMBER_BYTES} are allowed")
    stream = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not an array of NPY version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.dtype(object) or len(shape) != 1:
        raise ValueError(f"is a {shape} array of {dtype}; a SketchRNN file holds a list of drawings, (K,) of object")
    match _Unpickler(stream, encoding="latin1").load():
        case _Array(state=(1, (length,), _Dtype(descr="|O8" | "|O4"), False, list() as items)):
            pass
        case _:
            raise ValueError("the pickle is not an array of objects")
    if stream.read(1) or not length == len(items) == shape[0]:
        raise ValueError(f"the header promises {shape[0]} drawings; the pickle has {len(items)}, or bytes after them")

    drawings = [_build_drawing(item, index) for index, item in enumerate(items)]
    if drawings:
        # One pass over all points: checking each drawing by itself takes longer than unpickling it.
        pen_up = np.concatenate([drawing[:, 2] for drawing in drawings])
        if pen_up.min() < 0 or pen_up.max() > 1:
            index = next(i for i, drawing in enumerate(drawings) if not np.isin(drawing[:, 2], (0, 1)).all())
            raise ValueError(f"drawing {index}: pen_up (the third column) must be 0 or 1 in each point")
    return drawings


def _build_drawing(item: object, index: int) -> Int16Array:
    match item:
        case _Array(state=(1, tuple() as shape, _Dtype() as recorded, bool() as fortran, (bytes() | str()) as data)):
            pass
        case _:
            raise ValueError(f"drawing {index} is not an array")
    dtype = _INTEGERS.get(recorded.descr)
    if dtype is None:
        raise ValueError(f"drawing {index} has dtype {reprlib.repr(recorded.descr)}; integers are needed")
    match shape:
        case (int() as length, 3) if length >= 1:
            pass
        case _:
            # reprlib: a few bytes of pickle can nest a tuple so that its full text would fill the memory.
            raise ValueError(f"drawing {index} has shape {reprlib.repr(shape)}; (N, 3) with N >= 1 is needed")
    values = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)
    if len(values) != 3 * length:
        raise ValueError(f"drawing {index} has {len(values)} values; its shape {shape} needs {3 * length}")
    points = values.reshape(shape, order="F" if fortran else "C")
    limits = np.iinfo(np.int16)
    if not np.can_cast(dtype, np.int16) and (points.min() < limits.min or points.max() > limits.max):
        raise ValueError(f"drawing {index} has values outside {limits.min}..{limits.max}, the range of int16")
    return points.astype(np.int16, order="C")


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct` and for the array that it returns."""

    __slots__ = ("state",)

    def __init__(self, subtype: object, *_: object) -> None:
        if subtype is not _NDARRAY:
            raise pickle.UnpicklingError("only plain arrays are read")

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """Stands in for `numpy.dtype`; `descr` is byte order, kind and bytes of an item, such as `<i2`."""

    __slots__ = ("code", "descr")

    def __init__(self, code: object, *_: object) -> None:
        self.code = self.descr = code if isinstance(code, str) else "?"

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, str() as order, None, None, None, *_):  # no subarray, no names, no fields
                self.descr = order + self.code
            case _:
                raise pickle.UnpicklingError(f"only plain dtypes are read, not one with {reprlib.repr(state)}")


class _Latin1(bytes):
    """Stands in for `_codecs.encode`, with which Python 3 writes bytes in a pickle of protocol 2."""

    def __new__(cls, text: object, encoding: object) -> "_Latin1":
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("only latin1 text is read as bytes")
        return super().__new__(cls, text.encode("latin1"))


_NDARRAY = object()
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as NumPy 2 calls it
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,
}


# What the pickles of arrays consist of, in protocols 2 to 4. Left out, above all: dicts (with which BUILD could set
# attributes), objects made other than by REDUCE, and bytearrays (whose memory is taken before their bytes are seen).
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.REDUCE, pickle.BUILD),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
)


class _Dispatch(dict[int, Callable[[Any], None]]):
    def __missing__(self, opcode: int) -> Never:
        raise pickle.UnpicklingError(f"has opcode {bytes([opcode])!r}, which no array needs")


class _Unpickler(pickle._Unpickler):
    """Unpickles into stand-ins.

    The base is the Python implementation. The C one has no table of opcodes to shorten, and (as of Python 3.11) makes
    its memo as long as the largest index: for the seven bytes `]repla.` it takes 26 GB. The price is 4 microseconds a
    drawing. Source: CPython issue 115952.
    """

    dispatch = _Dispatch({code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES})

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of an admitted name; raises `UnpicklingError` for any other."""
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}; refused, since only NumPy arrays are read")
        return _ADMITTED[module, name]
