"""Reads SketchRNN's `.npz` files, which hold pickles, without running anything that is in them.

A file holds one class: `train.npy`, `valid.npy` and `test.npy`, each a pickled object array of int16 `(N, 3)` arrays,
written by Python 2. `numpy.load(allow_pickle=True)` would run whatever code a file carries. To admit NumPy's own
constructors and nothing else is not safe either: with `numpy.dtype.__setstate__` a pickle can clear the flags of
`object`, after which NumPy takes bytes of the file for pointers and crashes. So the admitted names resolve to inert
stand-ins that only record what they are called with, and the arrays are built here, from checked fields.

Shapes: N points of a drawing.
"""

import errno
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

# The largest class has 340,029 drawings, in the `.full.npz` files; 45 points a drawing are usual, 250 the most.
# Source: quickdraw-dataset README; `max_seq_len` in Magenta's sketch_rnn.
MAX_MEMBER_BYTES = 256 << 20
MAX_DRAWINGS = 1_000_000  # of a split
OPCODES, OPCODES_PER_DRAWING = 1000, 40  # Python 2 wrote 18 a drawing, Python 3 writes 30; each takes up to 100 bytes.
PIECE_BYTES = 1 << 20  # unpacked at a time

_INTEGERS = {
    f"{order}{kind}{size}": np.dtype(f"{order}{kind}{size}")
    for order in "<>|"
    for kind in "iu"
    for size in (1, 2, 4, 8)
}


class HostileFileError(ValueError):
    """A file that was made to do harm: a pickle that asks for more than arrays, or that unpacks to too much."""


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
        HostileFileError: The file is made to do harm.
        ValueError: The file is damaged or of another layout. The message names the file and the member.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else getattr(source, "name", repr(source))
    try:
        found = unpack(source, splits=splits)
    except (HostileFileError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    drawings: dict[str, list[Int16Array]] = {}
    for split, items in found.items():
        drawings[split] = []
        for index, item in enumerate(items):
            if isinstance(item, str):
                raise ValueError(f"{name}: {split}.npy: drawing {index} {item}")
            drawings[split].append(item)
        if items:
            # One pass over all points: checking each drawing by itself takes longer than unpickling it.
            pen_up = np.concatenate([drawing[:, 2] for drawing in drawings[split]])
            if pen_up.min() < 0 or pen_up.max() > 1:
                index = next(i for i, drawing in enumerate(drawings[split]) if not np.isin(drawing[:, 2], (0, 1)).all())
                reason = "pen_up (the third column) must be 0 or 1 in each point"
                raise ValueError(f"{name}: {split}.npy: drawing {index}: {reason}")
    return drawings


def unpack(
    source: str | os.PathLike[str] | BinaryIO, *, splits: Sequence[str] = SPLITS
) -> dict[str, list[Int16Array | str]]:
    """Returns as `read_npz` does, but for a malformed drawing why it is none, and `pen_up` is not looked at.

    Raises:
        HostileFileError: The file is made to do harm.
        ValueError: The file is damaged or of another layout. The message does not name the file.
    """
    expected = [f"{split}.npy" for split in SPLITS]
    try:
        archive = zipfile.ZipFile(source)
    except Exception as error:
        raise _to_damage(error, "not an .npz file") from error
    with archive:
        if sorted(archive.namelist()) != sorted(expected):
            raise ValueError(f"holds {reprlib.repr(sorted(archive.namelist()))}, but a SketchRNN file holds {expected}")
        drawings = {}
        for split in splits:
            try:
                drawings[split] = _read_member(archive, f"{split}.npy")
            except HostileFileError as error:
                raise HostileFileError(f"{split}.npy: {error}") from error
            except Exception as error:
                raise _to_damage(error, f"{split}.npy") from error
    return drawings


def _to_damage(error: Exception, what: str) -> Exception:
    """Returns what a crafted or damaged header, deflate stream or pickle means; it may fail in any way."""
    # zipfile seeks to where a damaged file says: to before its start, too.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return error
    return ValueError(f"{what}: {str(error) or type(error).__name__}; download it again")


def _read_member(archive: zipfile.ZipFile, member: str) -> list[Int16Array | str]:
    info = archive.getinfo(member)
    # zipfile would unpack other methods without a limit.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"is compressed by method {info.compress_type}; NumPy stores or deflates")
    if info.file_size > MAX_MEMBER_BYTES:
        raise HostileFileError(f"{info.file_size} bytes when unpacked; {MAX_MEMBER_BYTES} are allowed")
    stream = io.BytesIO()
    # In pieces, since zipfile unpacks up to 1 GiB at once before it looks at the size. It checks the CRC at the end.
    with archive.open(info) as packed:
        while piece := packed.read(PIECE_BYTES):
            stream.write(piece)
    stream.seek(0)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not an array of NPY version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.dtype(object) or len(shape) != 1:
        raise ValueError(f"is a {shape} array of {dtype}; a SketchRNN file holds a list of drawings, (K,) of object")
    if not 0 <= shape[0] <= MAX_DRAWINGS:
        raise HostileFileError(f"promises {shape[0]} drawings; {MAX_DRAWINGS} are allowed")
    match _Unpickler(stream, num_drawings=shape[0]).load():
        case _Array(state=(1, (length,), _Dtype(descr="|O8" | "|O4"), False, list() as items)):
            pass
        case _:
            raise ValueError("the pickle is not an array of objects")
    if stream.read(1) or not length == len(items) == shape[0]:
        raise ValueError(f"the header promises {shape[0]} drawings; the pickle has {len(items)}, or bytes after them")
    # One array may stand in the list many times, so that little of a file becomes much.
    if sum(len(item.data) for item in items if isinstance(item, _Array)) > MAX_MEMBER_BYTES:
        raise HostileFileError(f"repeats drawings to more than the {MAX_MEMBER_BYTES} bytes that are allowed")
    for index, item in enumerate(items):  # in place, which frees the stand-ins
        items[index] = _build_drawing(item)
    return items


def _build_drawing(item: object) -> Int16Array | str:
    """Returns a drawing, or why it is none."""
    match item:
        case _Array(state=(1, tuple() as shape, _Dtype() as recorded, bool() as fortran, (bytes() | str()) as data)):
            pass
        case _:
            return "is not an array"
    dtype = _INTEGERS.get(recorded.descr)
    if dtype is None:
        return f"has dtype {reprlib.repr(recorded.descr)}; integers are needed"
    match shape:
        case (int() as length, 3) if length >= 1:
            pass
        case _:
            # reprlib: a few bytes of pickle can nest a tuple so that its full text would fill the memory.
            return f"has shape {reprlib.repr(shape)}; (N, 3) with N >= 1 is needed"
    values = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)
    if len(values) != 3 * length:
        return f"has {len(values)} values; its shape {shape} needs {3 * length}"
    points = values.reshape(shape, order="F" if fortran else "C")
    limits = np.iinfo(np.int16)
    if not np.can_cast(dtype, np.int16) and (points.min() < limits.min or points.max() > limits.max):
        return f"has values outside {limits.min}..{limits.max}, the range of int16"
    return points.astype(np.int16, order="C")


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct` and for the array that it returns."""

    __slots__ = ("state",)

    def __init__(self, subtype: object, *_: object) -> None:
        if subtype is not _NDARRAY:
            raise HostileFileError("asks for an array that is not a plain one")
        self.state: object = None

    @property
    def data(self) -> bytes | str:
        """The bytes of the array; empty where they are none."""
        match self.state:
            case (_, _, _, _, (bytes() | str()) as data):
                return data
            case _:
                return b""

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


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which Python 3 calls for the bytes of an empty array in a pickle of protocol 2."""
    return b""


_NDARRAY = object()
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as NumPy 2 calls it
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("__builtin__", "bytes"): _no_bytes,
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
    """The opcodes, of which so many may be run."""

    def __init__(self, opcodes: dict[int, Callable[[Any], None]], limit: int) -> None:
        super().__init__(opcodes)
        self._left = limit

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise HostileFileError("its pickle has more opcodes than its drawings need")
        return super().__getitem__(opcode)

    def __missing__(self, opcode: int) -> Never:
        raise HostileFileError(f"has opcode {bytes([opcode])!r}, which no array needs")


class _Unpickler(pickle._Unpickler):
    """Unpickles into stand-ins, with memory in proportion to the drawings that the header promises.

    The base is the Python implementation. The C one has no table of opcodes to shorten, and (as of Python 3.11) makes
    its memo as long as the largest index: for the seven bytes `]repla.` it takes 26 GB. The price is 6 microseconds a
    drawing. Source: CPython issue 115952.
    """

    def __init__(self, stream: BinaryIO, *, num_drawings: int) -> None:
        super().__init__(stream, encoding="latin1")
        opcodes = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES}
        self.dispatch = _Dispatch(opcodes, OPCODES + OPCODES_PER_DRAWING * num_drawings)  # type: ignore[misc] # a budget each
        self._bytes_left = MAX_MEMBER_BYTES

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of an admitted name; raises `HostileFileError` for any other."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in _ADMITTED:
            asked = reprlib.repr(f"{module}.{name}")[1:-1]
            raise HostileFileError(f"asks for {asked}; refused, since only NumPy arrays are read")
        return _ADMITTED[module, name]

    def _encode(self, text: object, encoding: object) -> bytes:
        """Stands in for `_codecs.encode`, with which Python 3 writes bytes in a pickle of protocol 2."""
        if not isinstance(text, str) or encoding != "latin1":
            raise HostileFileError("asks for a text in another encoding than latin1")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise HostileFileError(f"repeats texts to more than the {MAX_MEMBER_BYTES} bytes that are allowed")
        return text.encode("latin1")
