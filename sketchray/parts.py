"""A part of a source, read: a file of any format, opened wherever it is and decompressed, or a class of doodles."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa

from sketchray import doodles
from sketchray.columns import to_column
from sketchray.errors import DataError
from sketchray.fetch import remote
from sketchray.formats import (
    SCHEMA,
    Bad,
    Block,
    HostileError,
    binary,
    csv,
    make_table,
    ndjson,
    parquet,
    tfds,
    tfrecord,
)
from sketchray.formats.detect import HEAD_BYTES, MAGIC_BYTES, decompressed, is_compressed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A file of `unknown` format is read as one bad record.
Format = Literal["simplified", "raw", "npz", "binary", "tfrecord", "csv", "tfds", "parquet", "doodles", "unknown"]

FORWARD = ("simplified", "raw", "binary", "tfrecord", "csv")  # formats that are read forward only
DAMAGE = (EOFError, OSError, zlib.error, LZMAError)  # what decompressors raise


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is read at once: a file, or a class of doodles.

    Attributes:
        uri: path or URI of the file, or the doodles' class.
        format: of the file.
        name: the class of records that name none: the file's stem.
        split: the published split, where the file's name says it.
        classes: names, in formats that number them.
        num_bytes: size of the file, 0 if not known.
        version: by which a changed file is known: its time of change or its checksum, where there is one.
        number: of doodles to draw.
        seed: of the doodles.
    """

    uri: str
    format: Format
    name: str
    split: str | None = None
    classes: tuple[str, ...] | None = None
    num_bytes: int = 0
    version: str = ""
    number: int = 0
    seed: int = 0

    def read(self, max_points: int) -> Iterator[Block]:
        """Yields the drawings, a bounded number at a time, and what is none.

        Of a damaged file, what precedes the damage is read. A bad record 0 is the file as a whole.

        Raises:
            HostileError: the file would run code, or exhaust memory.
            DataError: the file is not there, or cannot be fetched.
        """
        if self.format == "unknown":
            yield Block(SCHEMA.empty_table(), [Bad(0, "the file is empty, or of no format that is known")])
        elif self.format == "doodles":
            yield self._draw()
        elif self.format in FORWARD:
            with Decompressed(self.uri) as raw, io.BufferedReader(raw, HEAD_BYTES) as file:
                yield from self._decode(file, max_points)
                if raw.failure is not None:
                    raise raw.failure
                if raw.damage is not None:
                    reason = f"the compressed data are damaged ({raw.damage}): what follows is lost"
                    yield Block(SCHEMA.empty_table(), [Bad(0, reason)])
        else:
            with open_file(self.uri) as file:
                if is_compressed(file.read(MAGIC_BYTES)):
                    yield Block(SCHEMA.empty_table(), [Bad(0, f"a compressed {self.format} file: decompress it")])
                    return
                file.seek(0)
                yield from self._decode(file, max_points)

    def _decode(self, file: BinaryIO, max_points: int) -> Iterator[Block]:
        try:
            yield from self._blocks(file, max_points)
        except HostileError as error:
            raise HostileError(f"{self.uri}: {error}; nothing of it was executed, and nothing is written") from error
        except DataError as error:  # not of its format at all
            yield Block(SCHEMA.empty_table(), [Bad(0, str(error))])

    def _blocks(self, file: BinaryIO, max_points: int) -> Iterator[Block]:
        if self.format == "tfrecord":
            return tfrecord.read(file, max_points=max_points, classes=self.classes, split=self.split)
        if self.format == "tfds":
            return tfds.read(file, max_points=max_points, classes=self.classes or (), split=self.split)
        if self.format == "npz":
            from sketchray.formats import npz  # with it comes TensorFlow Datasets, which takes seconds

            return npz.read(file, max_points=max_points)
        readers = {
            "simplified": ndjson.read,
            "raw": ndjson.read,
            "binary": binary.read,
            "csv": csv.read,
            "parquet": parquet.read,
        }
        return readers[self.format](file, max_points=max_points)

    def _draw(self) -> Block:
        drawings = [doodles.draw(self.name, index, self.seed) for index in range(self.number)]
        offsets = np.concatenate([[0], np.cumsum([len(points) for points in drawings])])
        # Keys of doodles, so that splits and duplicates work as they do for real drawings.
        first = (doodles.CLASSES.index(self.name) + 1) << 32
        keys = pa.array(np.arange(self.number, dtype=np.uint64) + np.uint64(first))
        column = to_column(np.concatenate(drawings), offsets)
        return Block(make_table(column, np.arange(1, self.number + 1), key_id=keys), [])


def open_file(uri: str) -> BinaryIO:
    """Returns a file at a path or a URI, open for reading.

    Raises:
        DataError: it is not there, or may not be read.
    """
    if "://" in uri:
        return remote.open_uri(uri)
    try:
        return open(uri, "rb")
    except OSError as error:
        raise DataError(f"{uri}: {error.strerror or error}; name a file that every node can read") from error


class Decompressed(io.RawIOBase):
    """A file, decompressed. It ends where the data are damaged or the transfer fails, so that a reader ends well.

    Attributes:
        damage: what the decompressor found.
        failure: of the transfer.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = io.BufferedReader(cast(io.RawIOBase, open_file(uri)))  # it asks for readinto only
        self._data = decompressed(self._file)
        self.damage: Exception | None = None
        self.failure: DataError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        if self.damage is not None or self.failure is not None:
            return 0
        try:
            # A little at a time: an error would lose what comes before it.
            data = self._data.read1(min(len(view), HEAD_BYTES))
        except DataError as error:
            self.failure = error
            return 0
        except DAMAGE as error:
            # What a decompressor finds has no errno.
            if self._data is self._file or getattr(error, "errno", None) is not None:
                self.failure = DataError(f"{self._uri}: cannot be read ({error}); run again, or use another copy")
            else:
                self.damage = error
            return 0
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
