"""Coverage-guided fuzzing of the readers that parse bytes themselves.

    pip install atheris        # not among the dependencies
    python benchmarks/fuzz.py --reader tfrecord --seconds 600

Whatever the bytes are, a reader may raise nothing but DataError, must read them alike in pieces of any size, and what
it takes for a drawing must be one. The corpus and any input that shows otherwise stay in a directory that libFuzzer's
log names; the exit code is then not 0.
"""

import io
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import atheris
import google_crc32c
import numpy as np
import tyro

with atheris.instrument_imports(include=["sketchray"]):
    from sketchray.errors import DataError
    from sketchray.formats import SCHEMA, Bad, Block, binary, check_points, tfrecord

MAX_POINTS = 64
PIECE_BYTES = 37
ROUND_S = 60
CLASSES = ["cat", "dog"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Coverage-guided fuzzing of one reader.

    Attributes:
        reader: which.
        seconds: for how long.
        seed: of libFuzzer's choices.
    """

    reader: Literal["binary", "tfrecord"]
    seconds: int = 600
    seed: int = 1


class Trickle(io.BytesIO):
    """A file that hands over little at a time, as a slow connection does."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(PIECE_BYTES, size) if size and size > 0 else size)


def outcome(read: Callable[[BinaryIO], Iterator[Block]], file: BinaryIO) -> tuple[list[dict[str, object]], list[Bad]]:
    """Returns the drawings and the bad records of a file, each of which must be what it is said to be."""
    rows: list[dict[str, object]] = []
    bad: list[Bad] = []
    for block in read(file):
        assert block.table.schema == SCHEMA
        assert not check_points(block.table["points"].combine_chunks(), MAX_POINTS)
        rows += block.table.to_pylist()
        bad += block.bad
    lines = [line for line, _ in bad]
    assert lines == sorted(set(lines))
    assert all(lines)
    assert all(reason for _, reason in bad)
    return rows, bad


def check(read: Callable[[BinaryIO], Iterator[Block]], data: bytes) -> None:
    """Reads some bytes whole and in pieces."""
    try:
        whole = outcome(read, io.BytesIO(data))
    except DataError:
        return
    assert outcome(read, Trickle(data)) == whole


def check_binary(data: bytes) -> None:
    """Reads bytes as a `.bin` file: in one block, and in many small ones, where records lie across their borders."""

    def read(file: BinaryIO) -> Iterator[Block]:
        return binary.read(file, max_points=MAX_POINTS)

    check(read, data)
    read_bytes, binary.READ_BYTES = binary.READ_BYTES, PIECE_BYTES
    try:
        in_pieces = outcome(read, io.BytesIO(data))
    except DataError:
        return  # decided from the first block
    finally:
        binary.READ_BYTES = read_bytes
    assert in_pieces == outcome(read, io.BytesIO(data))


def check_tfrecord(data: bytes) -> None:
    """Reads bytes as a TFRecord file, and as the records of one whose checksums are right, compressed or not."""

    def read(file: BinaryIO) -> Iterator[Block]:
        return tfrecord.read(file, max_points=MAX_POINTS, classes=CLASSES)

    check(read, data)
    records = b"".join(frame(part) for part in data.split(b"----"))
    check(read, records)
    check(read, zlib.compress(records) if len(data) % 2 else records[: len(data)])


def frame(payload: bytes) -> bytes:
    """Returns a record of a TFRecord file."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def example(rng: np.random.Generator) -> bytes:
    """Returns an example of the tutorial's, none of its parts longer than 127 bytes."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    num_points = int(rng.integers(1, 5))
    positions = rng.random((num_points + 1, 2), np.float32)
    ink = np.column_stack([np.diff(positions, axis=0), rng.integers(0, 2, num_points)]).astype("<f4")
    lists = {
        b"ink": field(2, field(1, ink.tobytes())),
        b"shape": field(3, field(1, bytes([num_points, 3]))),
        b"class_index": field(3, field(1, bytes([rng.integers(0, 3)]))),
    }
    entries = [field(1, field(1, name) + field(2, feature)) for name, feature in lists.items()]
    features = b"".join(entries)
    return (
        b"\x0a" + (bytes([len(features)]) if len(features) < 128 else bytes([len(features) & 127 | 128, 1])) + features
    )


def record(rng: np.random.Generator) -> bytes:
    """Returns a record of a `.bin` file."""
    lengths = rng.integers(1, 6, rng.integers(1, 5))
    strokes = b"".join(struct.pack("<H", length) + rng.bytes(2 * length) for length in lengths)
    return struct.pack("<Q2sBIH", rng.integers(1 << 60), b"US", rng.integers(2), 1_485_000_000, len(lengths)) + strokes


def main() -> None:
    """Fuzzes until the time is over or an input shows a fault."""
    arguments = tyro.cli(Arguments)
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.reader}-"))
    rng = np.random.default_rng(arguments.seed)
    for number in range(32):
        parts = [(record if arguments.reader == "binary" else example)(rng) for _ in range(1 + number % 4)]
        (directory / f"seed-{number}").write_bytes((b"" if arguments.reader == "binary" else b"----").join(parts))
        if arguments.reader == "tfrecord":
            (directory / f"seed-file-{number}").write_bytes(b"".join(map(frame, parts)))
    target = check_binary if arguments.reader == "binary" else check_tfrecord
    ends = time.monotonic() + arguments.seconds
    while (left := round(ends - time.monotonic())) > 0:
        arguments = replace(arguments, seed=arguments.seed + 1)
        # Instrumented code leaks some kilobytes a run: a fresh process, on the same corpus, begins anew.
        child = os.fork()
        if not child:
            options = [f"-max_total_time={min(left, ROUND_S)}", f"-seed={arguments.seed}", "-max_len=4096"]
            options += ["-timeout=10", "-print_final_stats=1", f"-artifact_prefix={directory}/finding-"]
            atheris.Setup([sys.argv[0], *options, str(directory)], target)
            atheris.Fuzz()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
