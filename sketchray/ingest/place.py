"""Where a drawing goes: its place in the global shuffle and its split, by hashes of what it is, never of where it came.

Shapes: B drawings, N points of all drawings.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchray.columns import Int16Array, IntArray

PLACES = 1 << 62  # places in the shuffle, 0..PLACES - 1
PIECE = 1024  # drawings hashed at a time, in a processor's cache: twice as fast as many thousands
TRAIN_SHARE, VALID_SHARE = 0.8, 0.1  # of the drawings whose split is not published

UInt64Array = npt.NDArray[np.uint64]


def mix(values: UInt64Array | int) -> UInt64Array:
    """Returns 64-bit hashes of 64-bit numbers. Source: SplitMix64, Steele, Lea and Flood 2014."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return np.asarray(mixed)


def content_hash(names: pa.StringArray, points: Int16Array, offsets: IntArray) -> UInt64Array:
    """Returns a `(B,)` hash of each drawing's class and points; `names` has the class of each drawing."""
    if not len(names):
        return np.zeros(0, np.uint64)
    sums = np.empty(len(names), np.uint64)
    for start in range(0, len(names), PIECE):
        cuts = offsets[start : start + PIECE + 1]
        sums[start : start + PIECE] = _sum_points(points[cuts[0] : cuts[-1]], cuts - cuts[0])
    encoded = names.dictionary_encode()
    of_name = [
        int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        for name in encoded.dictionary.to_pylist()
    ]
    return mix(sums ^ np.array(of_name, np.uint64)[encoded.indices.to_numpy()])


def _sum_points(points: Int16Array, offsets: IntArray) -> UInt64Array:
    """Returns the `(B,)` sums of the hashes of each drawing's points, each with its number in the drawing."""
    # A point and its number in 64 bits: dx, dy, pen_up, and 31 bits for the number.
    packed = np.arange(len(points), dtype=np.uint64)
    packed -= np.repeat(offsets[:-1].astype(np.uint64), np.diff(offsets))
    for axis, bits in ((2, 1), (1, 16), (0, 16)):
        packed <<= np.uint64(bits)
        packed |= points[:, axis].view(np.uint16)
    with np.errstate(over="ignore"):
        return np.add.reduceat(mix(packed), offsets[:-1])


def choose_place(content: UInt64Array, seed: int) -> IntArray:
    """Returns `(B,)` places in the shuffle that `seed` names, from content hashes."""
    return (mix(content ^ mix(seed)) >> np.uint64(2)).astype(np.int64)


def choose_split(keys: UInt64Array) -> npt.NDArray[np.object_]:
    """Returns `train`, `valid` or `test` for each key: 80, 10 and 10 %, the same for a key wherever it stands."""
    share = mix(keys) / np.float64(2**64)
    return np.where(share < TRAIN_SHARE, "train", np.where(share < TRAIN_SHARE + VALID_SHARE, "valid", "test"))
