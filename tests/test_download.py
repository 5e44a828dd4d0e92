"""Downloads from a bucket that misbehaves: what gets its final name is whole, whatever happened before."""

import errno
import hashlib
import json
import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import Answer, FlakyServer, crc32c, doodle_file, md5

from sketchray.errors import DataError
from sketchray.fetch.download import cached_path, default_cache_dir, download
from sketchray.fetch.transfer import Limits

FAST = Limits(timeout_s=1, stall_s=0.2, min_bytes_per_s=1000, attempts=4, backoff_s=0.01)
CAT = "full/simplified/cat.ndjson"
CONTENT = doodle_file("cat", 600)
OTHER = doodle_file("The Eiffel Tower", 500)
SIZE = len(CONTENT)


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with FlakyServer({CAT: CONTENT, "full/simplified/The Eiffel Tower.ndjson": OTHER}) as running:
        yield running


def fetch(server: FlakyServer, cache: Path, limits: Limits = FAST) -> bytes:
    (path,) = download([server.url_of(CAT)], cache, limits=limits)
    assert path.name == "cat.ndjson"
    return path.read_bytes()


def leftovers(cache: Path) -> list[str]:
    """The files in a cache, but for locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


CUT = Answer(cut=SIZE // 3)
MENDED = {
    "503": [Answer(status=503)] * 3,
    "503 with Retry-After": [Answer(status=503, headers={"Retry-After": "0"})],
    "503 with a date in Retry-After": [Answer(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
    "503 with a strange Retry-After": [Answer(status=503, headers={"Retry-After": "soon"})],
    "429, 408, 500": [Answer(status=429), Answer(status=408), Answer(status=500)],
    "no answer": [Answer(cut=-1)] * 3,
    "cut before the first byte": [Answer(cut=0)] * 3,
    "cut, cut again, no answer": [CUT, Answer(cut=10_000), Answer(cut=-1), Answer(status=503)],
    "cut, no Range": [CUT, Answer(ranges=False)],
    "cut, no Range, cut": [CUT, Answer(ranges=False, cut=500), Answer(ranges=False, cut=SIZE - 1)],
    "cut, no ETag": [Answer(cut=SIZE // 3, headers={"ETag": None})],
    "cut, weak ETag": [Answer(cut=SIZE // 3, headers={"ETag": 'W/"1"'})],
    "declared too long": [Answer(headers={"Content-Length": str(SIZE + 1000)})],
    "declared too short": [Answer(headers={"Content-Length": str(SIZE - 1000)})],
    "length not declared": [Answer(headers={"Content-Length": None})],
    "length not declared, cut": [Answer(headers={"Content-Length": None}, cut=SIZE // 3)],
    "a range in parts": [
        Answer(cut=1000, headers={"x-goog-hash": None}),
        Answer(headers={"Content-Range": f"bytes 1000-1099/{SIZE}", "Content-Length": "100"}),
    ],
    "416": [CUT, Answer(status=416)],
    "206 unasked": [Answer(status=206)],
    "slow drip": [Answer(pause_s=0.05, piece=10)],
    "silence": [Answer(pause_s=1.2, piece=SIZE)],
    "wrong crc32c": [Answer(headers={"x-goog-hash": f"crc32c={crc32c(OTHER)}"})],
    "wrong md5": [Answer(headers={"x-goog-hash": f"md5={md5(OTHER)}"})],
    "other bytes under the hash": [Answer(content=OTHER, headers={"x-goog-hash": f"crc32c={crc32c(CONTENT)}"})],
    "no hash": [Answer(headers={"x-goog-hash": None})],
}


@pytest.mark.parametrize("case", MENDED)
def test_what_goes_wrong_for_a_while_is_mended(server: FlakyServer, tmp_path: Path, case: str) -> None:
    server.script = list(MENDED[case])
    assert fetch(server, tmp_path) == CONTENT
    assert server.script == []
    assert leftovers(tmp_path) == ["cat.ndjson"]


@pytest.mark.parametrize("seed", range(25))
def test_any_row_of_faults_is_mended(server: FlakyServer, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    answers = [answer for answers in MENDED.values() for answer in answers if not answer.pause_s]
    for _ in range(3):
        cut = Answer(cut=rng.randrange(SIZE), ranges=rng.random() < 0.7)
        server.script.append(rng.choice([cut, cut, rng.choice(answers)]))
    assert fetch(server, tmp_path, Limits(timeout_s=2, attempts=8, backoff_s=0.001)) == CONTENT


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": f"bytes 7-{SIZE - 1}/{SIZE}"},
        {"Content-Range": f"bytes {SIZE // 3}-{SIZE}/{SIZE + 1}"},
        {"Content-Range": None},
        {"ETag": '"other"'},
    ],
)
def test_a_range_that_does_not_continue_the_file_is_not_used(
    server: FlakyServer, tmp_path: Path, headers: dict[str, str | None]
) -> None:
    server.script = [CUT, Answer(headers=headers)]
    assert fetch(server, tmp_path) == CONTENT
    ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, f"bytes={SIZE // 3}-", None]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_nothing_is_resumed_that_no_strong_etag_names(server: FlakyServer, tmp_path: Path, etag: str | None) -> None:
    server.script = [Answer(cut=SIZE // 3, headers={"ETag": etag})]
    assert fetch(server, tmp_path) == CONTENT
    assert not any("range" in request.headers for request in server.requests)


def test_a_hash_of_compressed_bytes_is_not_held_against_the_file(server: FlakyServer, tmp_path: Path) -> None:
    server.always = Answer(headers={"x-goog-hash": "md5=x", "x-goog-stored-content-encoding": "gzip"})
    assert fetch(server, tmp_path) == CONTENT


def test_a_file_that_changes_meanwhile_is_fetched_anew(server: FlakyServer, tmp_path: Path) -> None:
    server.script = [Answer(cut=SIZE // 2)]
    server.always = Answer(content=OTHER)
    assert fetch(server, tmp_path) == OTHER


BROKEN = {
    "503": (Answer(status=503), "503 Service Unavailable, at byte 0, after 4 attempts"),
    "cut": (Answer(cut=100, ranges=False), "IncompleteRead"),
    "no answer": (Answer(cut=-1), "closed connection without response"),
    "404": (Answer(status=404), "404 Not Found; check the address"),
    "403": (Answer(status=403), "403 Forbidden; check the address"),
    "wrong hash": (Answer(headers={"x-goog-hash": f"crc32c={crc32c(OTHER)}"}), "its crc32c is .* twice"),
    "declared too long": (Answer(headers={"Content-Length": str(SIZE + 9)}), "416 Requested Range|IncompleteRead"),
    "declared too short": (Answer(headers={"Content-Length": str(SIZE - 9)}), "its crc32c is .* twice"),
    "slow drip": (Answer(pause_s=0.05, piece=5), "stalled: .* at byte"),
    "compressed": (Answer(headers={"Content-Encoding": "gzip"}), "sent with Content-Encoding 'gzip'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_stays_broken_is_a_clear_error(server: FlakyServer, tmp_path: Path, case: str) -> None:
    server.always, message = BROKEN[case]
    with pytest.raises(DataError, match=message) as caught:
        fetch(server, tmp_path)
    assert str(caught.value).startswith(server.url_of(CAT))
    assert "cat.ndjson" not in leftovers(tmp_path)
    assert len(server.requests) <= 2 * FAST.attempts
    if case in ("403", "404", "compressed"):
        assert len(server.requests) == 1


def test_only_what_is_missing_is_asked_for(server: FlakyServer, tmp_path: Path) -> None:
    server.script = [Answer(cut=1000), Answer(cut=2000)]
    assert fetch(server, tmp_path) == CONTENT
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=1000-", "bytes=3000-"]
    assert sum(request.sent for request in server.requests) == SIZE
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


def test_the_server_says_when_to_come_back(server: FlakyServer, tmp_path: Path) -> None:
    server.script = [Answer(status=503, headers={"Retry-After": "1"}), Answer(status=503)]
    fetch(server, tmp_path)
    first, second, third = (request.time for request in server.requests)
    assert 1 <= second - first < 1.5
    assert third - second < 0.5
    server.script = [Answer(status=429, headers={"Retry-After": "3600"})]
    start = time.monotonic()
    fetch(server, tmp_path / "other", Limits(longest_wait_s=0.1))
    assert time.monotonic() - start < 1


def test_progress_is_what_ends_a_row_of_failures(server: FlakyServer, tmp_path: Path) -> None:
    server.always = Answer(cut=SIZE // 10)
    assert fetch(server, tmp_path) == CONTENT  # ten cuts, four attempts
    assert len(server.requests) > 2 * FAST.attempts


def test_a_complete_file_is_not_asked_for_again(server: FlakyServer, tmp_path: Path) -> None:
    urls = [server.url_of("full/simplified/The Eiffel Tower.ndjson"), server.url_of(CAT)]
    paths = download([*urls, urls[0]], tmp_path, limits=FAST)
    assert [path.name for path in paths] == ["The Eiffel Tower.ndjson", "cat.ndjson", "The Eiffel Tower.ndjson"]
    assert [path.read_bytes() for path in paths] == [OTHER, CONTENT, OTHER]
    assert len(server.requests) == 2
    assert download(urls, tmp_path, limits=FAST) == paths[:2]
    assert len(server.requests) == 2


def test_files_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    places = {cached_path(f"https://host/{place}", tmp_path) for place in ("a/cat.bin", "b/cat.bin", "a/cat.bin?v=2")}
    assert len(places) == 3
    assert {place.stem for place in places} == {"cat"}
    for url in (
        "https://host/a/",
        "https://host/..%2fcat",
        "https://host/%2e%2e",
        "ftp://host/cat",
        "https://host/a%00",
    ):
        with pytest.raises(DataError, match="names no file"):
            cached_path(url, tmp_path)


def test_one_refusal_stops_the_other_files(server: FlakyServer, tmp_path: Path) -> None:
    server.always = Answer(pause_s=0.2, piece=100)  # half a minute each
    start = time.monotonic()
    with pytest.raises(DataError, match="no_such_class"):
        download(
            [server.url_of(CAT), *(server.url_of(f"full/simplified/no_such_class{index}") for index in range(9))],
            tmp_path,
            limits=Limits(attempts=2),
        )
    assert time.monotonic() - start < 3
    assert "cat.ndjson" not in leftovers(tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from sketchray.fetch.download import download
print(download([sys.argv[1]], Path(sys.argv[2]))[0].stat().st_size)
"""


def start_download(server: FlakyServer, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, server.url_of(CAT), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_killed_download_goes_on_where_it_was(server: FlakyServer, tmp_path: Path, share: float) -> None:
    content = server.files[CAT] = CONTENT * 8
    server.script = [Answer(pause_s=0.01, piece=len(content) // 40)]
    process = start_download(server, tmp_path)
    part = cached_path(server.url_of(CAT), tmp_path).with_name("cat.ndjson.part")
    while not part.exists() or part.stat().st_size < share * len(content):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert leftovers(tmp_path) == ["cat.ndjson.part", "cat.ndjson.part.json"]
    assert fetch(server, tmp_path) == content
    assert server.requests[1].headers["range"] == f"bytes={kept}-"
    assert server.requests[1].sent == len(content) - kept
    assert leftovers(tmp_path) == ["cat.ndjson"]


def test_two_processes_that_want_one_file_fetch_it_once(server: FlakyServer, tmp_path: Path) -> None:
    server.always = Answer(pause_s=0.02, piece=SIZE // 40)
    processes = [start_download(server, tmp_path) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == [f"{SIZE}\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert len(server.requests) == 1
    assert fetch(server, tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("part", "note"),
    [
        (CONTENT[:5000], None),  # of nobody knows what version
        (CONTENT[:5000], '{"etag": "\\"f'),  # killed in the middle of the note
        (CONTENT[:5000], '{"etag": "\\"old\\"", "size": 70000, "checksum": null}'),
        (CONTENT[:5000], '{"etag": null, "size": 70000, "checksum": null}'),
        (b"x" * 5000, "right"),  # damaged on the disk
        (CONTENT, "right"),  # killed before the file got its name
        (b"x" * SIZE, "right"),
        (CONTENT + b"x", "right"),
    ],
)
def test_what_a_process_left_is_used_only_if_it_fits(
    server: FlakyServer, tmp_path: Path, part: bytes, note: str | None
) -> None:
    path = cached_path(server.url_of(CAT), tmp_path)
    path.parent.mkdir()
    path.with_name("cat.ndjson.part").write_bytes(part)
    if note is not None:
        etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
        right = json.dumps({"etag": etag, "size": SIZE, "checksum": ["crc32c", crc32c(CONTENT)]})
        path.with_name("cat.ndjson.part.json").write_text(right if note == "right" else note)
    assert fetch(server, tmp_path) == CONTENT
    assert leftovers(tmp_path) == ["cat.ndjson"]
    if part == CONTENT:
        assert server.requests == []


def test_a_full_disk_is_a_clear_error(server: FlakyServer, tmp_path: Path) -> None:
    path = cached_path(server.url_of(CAT), tmp_path)
    path.parent.mkdir()
    path.with_name("cat.ndjson.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; free space there, or name another") as caught:
        fetch(server, tmp_path)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not path.exists()


def test_progress_is_logged_once_a_second(
    server: FlakyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = Answer(pause_s=0.05, piece=SIZE // 40)
    with caplog.at_level(logging.INFO):
        fetch(server, tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == "sketchray.fetch.download"]
    assert 2 <= len(lines) <= 4  # two seconds and the end
    assert lines[0].startswith("download: cat.ndjson 0.")
    assert f"of {SIZE / 1e6:.1f} MB; 0 of 1 files" in lines[0]
    assert lines[-1].startswith(f"download: 1 of 1 files, {SIZE / 1e6:.1f} MB at ")


def test_the_cache_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "sketchray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "sketchray"


def test_the_checksum_of_the_server_is_right() -> None:
    assert crc32c(b"123456789") == "4waSgw=="  # the check value of CRC-32C, 0xe3069283
    assert crc32c(CONTENT) != crc32c(OTHER)
