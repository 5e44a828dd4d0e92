"""TFRecord framing and compression: torn, flipped, too long, hostile."""

import gzip
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from tfrecord_writer import (
    CLASSES,
    COMPRESSIONS,
    RECORD_A,
    RECORD_B,
    A,
    B,
    Outcome,
    crc32c,
    frame,
    masked,
    outcome,
    to_example,
    to_ink,
)

from sketchray.errors import DataError
from sketchray.formats import Bad, tfrecord
from sketchray.formats.tfrecord import framed

pytestmark = pytest.mark.filterwarnings("error")  # array arithmetic on numbers that are none warns


def test_the_writer_agrees_with_the_published_checksums() -> None:
    # Source: RFC 3720, appendix B.4, and the check value of CRC-32C.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_a_file_torn_anywhere_keeps_what_stands_before(compress: Callable[[bytes], bytes]) -> None:
    payloads = [to_example(to_ink(A)), b"", to_example(to_ink(B))]
    data = compress(b"".join(map(frame, payloads)))
    kept = []
    for cut in range(len(data)):
        items = list(framed(io.BytesIO(data[:cut])))
        whole = [item for item in items if not isinstance(item, Bad)]
        assert whole == list(enumerate(payloads, 1))[: len(whole)]
        kept.append(len(whole))
        bad = items[len(whole) :]
        is_between = compress is bytes and cut in (0, len(frame(payloads[0])), len(data) - len(frame(payloads[2])))
        assert len(bad) == (0 if is_between or not cut else 1)
        assert all(reason.startswith("torn record: ") and line == len(whole) + 1 for line, reason in bad)
    assert kept == sorted(kept)
    if compress is bytes:
        assert set(kept) == {0, 1, 2}
    assert [item for item in framed(io.BytesIO(data)) if isinstance(item, Bad)] == []


def test_a_torn_record_says_how_much_is_there() -> None:
    data = RECORD_A + RECORD_B
    assert outcome(data[: len(RECORD_A) + 5]).bad == [Bad(2, "torn record: 5 of at least 16 bytes")]
    assert outcome(data[:-1]).bad == [Bad(2, f"torn record: {len(RECORD_B) - 1} of {len(RECORD_B)} bytes")]
    # Some bytes of the end of a GZIP file are no record's.
    assert outcome(gzip.compress(data)[:-1]).drawings == [A, B]
    (bad,) = outcome(gzip.compress(data)[:-1]).bad
    assert bad == Bad(3, "torn record: 0 of at least 16 bytes; the compressed data end too early")


def test_every_flipped_bit_of_a_record_is_noticed_and_leaves_its_neighbours() -> None:
    for index in range(len(RECORD_B)):
        changed = bytearray(RECORD_B)
        changed[index] ^= 1 << index % 8
        found = outcome(RECORD_A + changed + RECORD_A)
        if index < 12:
            lost = len(RECORD_B) + len(RECORD_A)
            assert found.drawings == [A]
            reason = f"the checksum of the length is wrong: no record can be told from here on, {lost} bytes"
        else:
            assert found.drawings == [A, A]
            reason = "the checksum of the record is wrong: damaged since it was written"
        assert found.bad == [Bad(2, reason)]


@pytest.mark.parametrize("compress", COMPRESSIONS[1:])
def test_every_flipped_bit_of_a_compressed_file_is_noticed(compress: Callable[[bytes], bytes]) -> None:
    data = compress(RECORD_A + RECORD_B * 3)
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        try:
            found = outcome(bytes(changed))
        except DataError:
            continue
        # Some bits of a header of GZIP (its time, its system) say nothing about what is in the file.
        assert found.bad or (found.drawings == [A, B, B, B] and compress is gzip.compress and index < 10)
        assert found.drawings == [A, B, B, B][: len(found.drawings)]


def test_a_record_that_is_too_long_is_passed_over_and_not_held() -> None:
    size = 50 << 20
    length = struct.pack("<Q", size)
    head = length + masked(length)

    class Long(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = [RECORD_A, head, *[bytes(1 << 20)] * (size >> 20), b"sums", RECORD_B]

        def read(self, size: int = -1) -> bytes:
            part, self.parts = (self.parts[:1] or [b""])[0], self.parts[1:]
            if len(part) > size:
                self.parts = [part[size:], *self.parts]
            return part[:size]

    stream: Any = Long()
    tracemalloc.start()
    (block,) = tfrecord.read(stream, max_points=9, classes=CLASSES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block.table["class"].to_pylist() == ["cat", "dog"]
    assert block.bad == [Bad(2, "a record of 52,428,800 bytes, at most 4,194,304 are accepted")]
    assert peak < 10 << 20


@pytest.mark.parametrize("size", [4 << 20, 1 << 40, 2**64 - 1])
def test_a_length_that_is_not_there_allocates_nothing(size: int) -> None:
    length = struct.pack("<Q", size)
    data = RECORD_A + length + masked(length) + b"abc"
    tracemalloc.start()
    found = outcome(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.drawings == [A]
    assert found.bad == [Bad(2, f"torn record: 15 of {size + 16:,} bytes")]
    assert peak < 2 << 20


def test_a_decompression_bomb_is_not_held() -> None:
    squeezed = zlib.compress(RECORD_A + bytes(200 << 20))
    tracemalloc.start()
    found = outcome(squeezed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.drawings == [A]
    assert found.bad[0].reason.endswith(f"{200 << 20:,} bytes")
    assert peak < 10 << 20


@pytest.mark.parametrize("size", [0x0178, 0x5E78, 0x8B1F])
def test_a_length_that_looks_like_compression(size: int) -> None:
    assert list(framed(io.BytesIO(frame(bytes(size))))) == [(1, bytes(size))]


def test_whatever_can_be_decompressed_of_a_cut_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "INFLATED_BYTES", 7)
    record = frame(b"a")
    data = zlib.compress(record * 400)
    for cut in range(20, len(data)):
        there = len(zlib.decompressobj().decompress(data[:cut])) // len(record)
        items = list(framed(io.BytesIO(data[:cut])))
        assert items[:-1] == [(number + 1, b"a") for number in range(there)]
        assert isinstance(items[-1], Bad)


def test_streams_of_gzip_may_follow_each_other_and_be_padded() -> None:
    data = (
        gzip.compress(RECORD_A) + gzip.compress(RECORD_B[:9]) + bytes(70_000) + gzip.compress(RECORD_B[9:]) + bytes(9)
    )
    assert outcome(data).drawings == [A, B]
    assert outcome(data).bad == []


@pytest.mark.parametrize(
    "data", [b'{"word": "cat", "drawing": []}\n', gzip.compress(b"some text, compressed", mtime=0), bytes(99)]
)
def test_another_format_is_none_of_this(data: bytes) -> None:
    with pytest.raises(DataError, match="not a TFRecord file"):
        outcome(data)


def test_nothing_is_no_drawing() -> None:
    assert outcome(b"") == Outcome([], [])
    assert outcome(gzip.compress(b"")) == Outcome([], [])
