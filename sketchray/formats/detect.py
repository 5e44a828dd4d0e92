"""Which format a file is of, seen from its first bytes, whatever its name is."""

import bz2
import csv
import gzip
import lzma
import re
import zlib
from io import BufferedReader, BytesIO, RawIOBase
from typing import Literal, Protocol

import pyarrow as pa

from sketchray.errors import DataError
from sketchray.formats import binary, tfrecord
from sketchray.strokes import MAX_POINTS

FileFormat = Literal["simplified", "raw", "npz", "binary", "tfrecord", "csv", "parquet"]

HEAD_BYTES = 1 << 16
GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
MAGIC_BYTES = len(XZ)  # the longest of them
ARROW_FILES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")  # Parquet, Arrow IPC's file and stream
ZIP = b"PK\x03\x04"
TIMES = re.compile(rb'"drawing"\s*:\s*\[\s*\[(\s*\[[^]]*\]\s*,){2}\s*\[')  # a stroke of three lists


class Readable(Protocol):
    """What is read a step at a time."""

    def read1(self, size: int = -1, /) -> bytes: ...


def decompressed(file: "BufferedReader[RawIOBase]") -> Readable:
    """Returns a file, read through gzip, bzip2, xz or zstd if its first bytes are of one of them."""
    head = file.peek(MAGIC_BYTES)
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(BZIP2):
        return bz2.BZ2File(file)
    if head.startswith(XZ):
        return lzma.LZMAFile(file)
    compressed: Readable = pa.CompressedInputStream(file, "zstd") if head.startswith(ZSTD) else file
    return compressed


def is_compressed(head: bytes) -> bool:
    """Returns whether the first bytes of a file are of gzip, bzip2, xz or zstd."""
    return head.startswith((GZIP, BZIP2, XZ, ZSTD))


def detect(head: bytes) -> FileFormat | None:
    """Returns the format of a file from its first `HEAD_BYTES`, decompressed; None if it is none that is known."""
    if head.startswith(ARROW_FILES):
        return "parquet"
    if head.startswith(ZIP):
        return "npz"
    if _is_tfrecord(_inflated(head)):
        return "tfrecord"
    line = head.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")[0]
    if line.startswith(b"{"):
        return "raw" if TIMES.search(head) else "simplified"
    if _is_csv(line):
        return "csv"
    return "binary" if _is_binary(head) else None


def _inflated(head: bytes) -> bytes:
    """Returns the first bytes of a ZLIB stream (TensorFlow compresses so), or what there is if it is none."""
    try:
        return zlib.decompressobj().decompress(head, 64)
    except zlib.error:
        return head


def _is_tfrecord(head: bytes) -> bool:
    try:
        # The checksum of the first length decides; what is too short for one is no file of this kind.
        return len(head) >= tfrecord.HEADER.size and any(tfrecord.framed(BytesIO(head)))
    except DataError:
        return False


def _is_binary(head: bytes) -> bool:
    """Returns whether a record of Quick, Draw! starts the file, which has no mark of its own but a country."""
    try:
        first = next(binary.read(BytesIO(head), max_points=MAX_POINTS), None)
    except DataError:
        return False
    return first is not None and len(first.table) > 0 and head[8:10].isalpha()


def _is_csv(line: bytes) -> bool:
    try:
        return "drawing" in next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error):
        return False
