"""Ingest from the bucket and from S3, end to end: jobs as processes, Ray, and servers on loopback that misbehave."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import Answer, FlakyServer, doodle_file
from object_store import ObjectStore
from test_binary import encode as encode_binary
from test_jobs import error, job, result
from test_npz import archive
from test_npz import encode as encode_npz

from sketchray import doodles
from sketchray.fetch.bucket import LAYOUT
from sketchray.ingest import ingest
from sketchray.shards import open_shards
from sketchray.sources import open_source
from sketchray.strokes import to_record

CLASSES = ("cat", "dog", "The Eiffel Tower")
NUMBER = 40  # drawings of each class
# 503 without a wait: six in a row are one more than what is got over.
BUSY = Answer(status=503, headers={"Retry-After": "0"})


def content(format: str, name: str) -> bytes:
    """Returns the bucket's file of a class, of generated drawings."""
    drawings = [doodles.draw(doodles.CLASSES[CLASSES.index(name)], index) for index in range(NUMBER)]
    if format == "npz":
        train, valid, test = drawings[:-10], drawings[-10:-5], drawings[-5:]
        return archive(train=encode_npz(train), valid=encode_npz(valid), test=encode_npz(test)).getvalue()
    records = [to_record(drawing) for drawing in drawings]
    if format == "binary":
        return b"".join(encode_binary(record, key) for key, record in enumerate(records, 1))
    if format == "raw":  # ten points a second, not at whole pixels
        records = [
            [
                [[x + 0.25 for x in xs], [y + 0.5 for y in ys], [100 * index for index in range(len(xs))]]
                for xs, ys in one
            ]
            for one in records
        ]
    lines = ({"word": name, "key_id": str(key), "drawing": record} for key, record in enumerate(records, 1))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    """The bucket on loopback, with three classes in all formats."""
    files = {LAYOUT[format].format(name): content(format, name) for format in LAYOUT for name in CLASSES}
    with FlakyServer(files) as running:
        monkeypatch.setenv("SKETCHRAY_BUCKET", f"{running.url}/")
        yield running


def ingest_bucket(cluster: str, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs the job on the three classes, with a cache beside the output."""
    common = ("--source", "quickdraw", "--out", str(out), "--cache-dir", str(out.parent / "cache"))
    return job("ingest", *common, "--classes", ",".join(CLASSES), *flags, address=cluster)


def ingest_files(server: FlakyServer, format: str, directory: Path, per_class: int | None = None) -> Path:
    """Ingests the same files from the disk."""
    source, out = directory / "files", directory / "from files"
    source.mkdir()
    for name in CLASSES:
        path = LAYOUT[format].format(name)  # type: ignore[index]
        (source / Path(path).name).write_bytes(server.files[path])
    ingest(open_source(str(source), per_class=per_class), str(out))
    return out


def digests(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("format", list(LAYOUT))
def test_from_a_bucket_that_misbehaves_come_the_shards_of_local_files(
    cluster: str, server: FlakyServer, tmp_path: Path, format: str
) -> None:
    size = len(server.files[LAYOUT[format].format("cat")])  # type: ignore[index]
    # The first requests are those of the three files, in some order; what follows goes on after the cuts.
    server.script = [BUSY, Answer(cut=size // 2), Answer(cut=-1), BUSY, Answer(cut=size // 3, ranges=False)]
    done = ingest_bucket(cluster, tmp_path / "out", "--format", format)
    answer = result(done)
    assert (answer["drawings"], answer["classes"], answer["quarantined"]) == (3 * NUMBER, 3, 0)
    assert server.script == []
    assert done.stderr.count("CC BY 4.0") == 1
    assert "download: 3 of 3 files" in done.stderr
    assert digests(tmp_path / "out") == digests(ingest_files(server, format, tmp_path))
    if format == "npz":
        assert answer["splits"] == {"train": 3 * (NUMBER - 10), "valid": 15, "test": 15}


def test_a_class_that_fails_is_one_line_and_a_rerun_goes_on_with_what_is_there(
    cluster: str, server: FlakyServer, tmp_path: Path
) -> None:
    dog = LAYOUT["simplified"].format("dog")
    whole = server.files.pop(dog)
    message = error(ingest_bucket(cluster, tmp_path / "out"))
    assert f"{server.url}/{dog}: 404 Not Found; check the address" in message
    assert not (tmp_path / "out").exists()
    # Whole files, and the parts of those that were stopped.
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".ndjson", ".part")]
    num_bytes = sum(path.stat().st_size for path in cached)

    server.files[dog] = whole
    server.requests.clear()
    result(ingest_bucket(cluster, tmp_path / "out"))
    sizes = [len(server.files[LAYOUT["simplified"].format(name)]) for name in CLASSES]
    assert num_bytes + sum(request.sent for request in server.requests) == sum(sizes)

    server.requests.clear()
    result(ingest_bucket(cluster, tmp_path / "again"))
    assert server.requests == []
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    assert digests(tmp_path / "out") == digests(ingest_files(server, "simplified", tmp_path))


def test_a_bucket_that_stays_busy_ends_the_job_with_its_name(cluster: str, server: FlakyServer, tmp_path: Path) -> None:
    server.always = BUSY
    message = error(ingest_bucket(cluster, tmp_path / "out", "--format", "raw"))
    assert f"{server.url}/full/raw/" in message
    assert "503 Service Unavailable, at byte 0, after 6 attempts; try later" in message
    assert not (tmp_path / "out").exists()


def test_per_class_streams_the_beginning_only(cluster: str, server: FlakyServer, tmp_path: Path) -> None:
    for name in CLASSES:
        path = LAYOUT["simplified"].format(name)
        server.files[path] += doodle_file(name, 10) * (24 << 20 // len(doodle_file(name, 10)))
        server.files[path] = server.files[path][: 24 << 20]
    # A checksum of 24 MiB takes the server long, and is never asked for.
    server.always = Answer(headers={"x-goog-hash": None})
    answer = result(ingest_bucket(cluster, tmp_path / "out", "--per-class", "25"))
    assert answer["drawings"] == 75
    assert not list((tmp_path / "cache").rglob("*.ndjson"))
    server.__exit__(None, None, None)  # waits for the end of the answers
    sent = [request.sent for request in server.requests]
    assert sum(sent) < 3 * (12 << 20)  # a block of 4 MiB each, and what the buffers of sockets hold
    assert digests(tmp_path / "out") == digests(ingest_files(server, "simplified", tmp_path, per_class=25))


def test_a_stream_that_fails_keeps_what_is_complete_and_a_rerun_goes_on(
    cluster: str, server: FlakyServer, tmp_path: Path
) -> None:
    dog = LAYOUT["binary"].format("dog")  # the last: two are read at a time
    whole = server.files.pop(dog)
    flags, out = ("--format", "binary", "--per-class", "30"), tmp_path / "out"
    message = error(ingest_bucket(cluster, out, *flags))
    assert f"{server.url}/{dog}: 404 Not Found; check the address" in message
    assert not (out / "manifest.json").exists()
    complete = len(list((out / "_ingest").glob("group-*.json")))
    assert complete in (1, 2)

    server.files[dog] = whole
    server.requests.clear()
    assert result(ingest_bucket(cluster, out, *flags))["drawings"] == 90
    assert len(server.requests) == 3 - complete
    assert digests(out) == digests(ingest_files(server, "binary", tmp_path, per_class=30))


@pytest.mark.parametrize(
    ("classes", "close"), [("cat,dgo", "class 'dgo': .*; did you mean .*'dog'"), ("xyzzy", "class 'xyzzy': .*; see")]
)
def test_a_class_that_is_none_is_named_with_what_is_close_and_nothing_is_asked(
    server: FlakyServer, classes: str, close: str, tmp_path: Path
) -> None:
    flags = ("--source", "quickdraw", "--classes", classes, "--out", str(tmp_path / "out"))
    assert re.search(close, error(job("ingest", *flags)))
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def s3(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """An S3 server with a bucket `drawings` and files below `full/`; returns the URI of `shards` beside it."""
    variables = {
        "AWS_ENDPOINT_URL": f"http://{store.address}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # What `ray job submit --runtime-env-json` does: the workers get the same variables.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": variables}}))
    uri = store.make_bucket("drawings")
    for name in CLASSES:
        store.client.put_object(Bucket="drawings", Key=f"full/{name}.ndjson", Body=content("simplified", name))
    return uri.format("shards")


def test_from_s3_to_s3(cluster: str, s3: str, server: FlakyServer, tmp_path: Path) -> None:
    answer = result(job("ingest", "--source", "s3://drawings/full", "--out", s3, address=cluster))
    assert (answer["drawings"], answer["classes"], answer["out"]) == (3 * NUMBER, 3, s3)
    shards = open_shards(s3)
    shards.verify()
    local = open_shards(str(ingest_files(server, "simplified", tmp_path)))
    assert shards.manifest == local.manifest  # checksums of the files too
    again = job("ingest", "--source", "s3://drawings/full", "--out", s3, address=cluster)
    assert "already holds a data set" in error(again)
