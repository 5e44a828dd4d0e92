r"""Generates the `.npz` files of `dummy_data/`: doodles made by a formula, in the layout of SketchRNN's files.

    python -m sketchray.sketch_rnn.dummy_data_generation

The bytes depend on nothing but this file. No drawing of Quick, Draw! is in them.
"""

import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sketchray.sketch_rnn.npz import SPLITS, Int16Array

CORNERS = {"The Eiffel Tower": 3, "hexagon": 6, "square": 4}  # of the polygon that stands for a drawing of the class
DRAWINGS = {"train": 5, "valid": 3, "test": 2}


def _save_str(pickler: Any, value: str | bytes) -> None:
    data = value.encode("latin1") if isinstance(value, str) else value
    if len(data) < 256:
        pickler.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
    else:
        pickler.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
    pickler.memoize(value)


class _Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as `str` of Python 2: that is what an unpickler with `encoding="latin1"` is for."""

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, str: _save_str, bytes: _save_str}


def write_npz(path: pathlib.Path, drawings: Mapping[str, Sequence[Int16Array]]) -> None:
    """Writes a `.npz` file as Python 2 and NumPy 1 wrote those of SketchRNN, but for its dates, which are constant.

    Args:
        path: Where to write.
        drawings: The `(N, 3)` int16 drawings of each split.
    """
    # Stored, not deflated: the bytes of a deflate stream differ from one zlib to the next.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for split, items in drawings.items():
            array = np.empty(len(items), dtype=object)
            for i, item in enumerate(items):  # `array[:] = items` would see one array in drawings of equal length
                array[i] = item
            archive.writestr(zipfile.ZipInfo(f"{split}.npy"), encode_npy(array))


def encode_npy(array: Any) -> bytes:
    """Returns an object array as a `.npy` file whose pickle could have come from Python 2."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": array.shape})
    body = io.BytesIO()
    _Python2Pickler(body, protocol=2).dump(array)
    return stream.getvalue() + body.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def make_doodle(corners: int, lines: int, rng: np.random.Generator) -> Int16Array:
    """Returns a polygon with lines through it: `(corners + 1 + 2 * lines, 3)` points in a box of 255 pixels."""
    angle = np.linspace(0, 2 * np.pi, corners + 1) + rng.uniform(0, 2 * np.pi)
    polygon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ends = rng.uniform(-1, 1, size=(2 * lines, 2))
    places = np.rint(np.concatenate([polygon, ends]) * rng.uniform(40, 120) + 127)
    points = np.zeros((len(places), 3), dtype=np.int16)
    points[:, :2] = np.diff(places, axis=0, prepend=0)
    points[corners::2, 2] = 1
    return points


def make_drawings(corners: int, drawings: Mapping[str, int], seed: int) -> dict[str, list[Int16Array]]:
    """Returns that many doodles for each split."""
    rng = np.random.default_rng(seed)
    return {split: [make_doodle(corners, 1 + i % 3, rng) for i in range(drawings[split])] for split in SPLITS}


def main(folder: pathlib.Path = pathlib.Path(__file__).parent / "dummy_data") -> None:
    """Writes the file of each class into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, corners in CORNERS.items():
        write_npz(folder / f"{name}.npz", make_drawings(corners, DRAWINGS, seed=corners))


if __name__ == "__main__":
    main()
