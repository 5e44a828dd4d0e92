"""What a storage refuses, and what is then done about it. No Ray."""

import errno
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from object_store import ObjectStore
from test_runs import contents

from sketchray import checkpoint as checkpoints
from sketchray import shards, storage
from sketchray.errors import StorageError
from sketchray.runs import newest
from sketchray.shards import open_shards
from sketchray.storage import child, naming, open_filesystem, patiently

BUSY = "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."


def test_a_store_that_refuses_for_a_while_loses_no_checkpoint(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.make_bucket("runs").format("one")
    for step in (10, 20):
        checkpoints.write(child(run, f"checkpoint_{step:09d}"), contents(step, 0.5))
    uri = child(run, "checkpoint_000000020")
    meta = checkpoints.read_meta(uri)
    told = store.refuse_until_told(monkeypatch)
    assert hashlib.sha256(checkpoints._read(uri, "state.pt", meta)).hexdigest() == meta.files["state.pt"].sha256
    (line,) = told
    assert line.startswith(f"{child(uri, 'state.pt')}: the storage refuses, trying again (When reading")
    store.refusing = True
    found = patiently(lambda: newest(run), run)
    assert found is not None
    assert found[2].step == 20
    assert len(told) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("403 Forbidden", "AccessDenied"),
        ("403 Forbidden", "InvalidAccessKeyId"),
        ("403 Forbidden", "SignatureDoesNotMatch"),
        ("400 Bad Request", "ExpiredToken"),
        ("403 Forbidden", "RequestTimeTooSkewed"),
        ("404 Not Found", "NoSuchBucket"),
    ],
)
def test_what_a_store_denies_is_not_asked_for_again(store: ObjectStore, status: str, code: str) -> None:
    uri = store.make_bucket("runs").format("a/b")
    store.status, store.code, store.refusing = status, code, True

    def write() -> None:
        filesystem, path = open_filesystem(uri)
        filesystem.open_output_stream(path).close()

    def read() -> None:
        filesystem, path = open_filesystem(uri)
        filesystem.open_input_file(path).close()

    what = r"^there: cannot be {} \(.*AWS Error .*\); give this job access to it, then try again$"
    with pytest.raises(StorageError, match=what.format("written")):
        patiently(write, "there", "cannot be written", "try again")
    if code != "NoSuchBucket":  # then there is no such file
        with pytest.raises(StorageError, match=what.format("read")):
            patiently(read, "there", "cannot be read", "try again")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "whatever"), r"^x: cannot be used \(No space left on device\); make room there, "),
        (OSError(errno.EACCES, "whatever"), r"^x: cannot be used \(Permission denied\); give this job access to it, "),
        (OSError(errno.EROFS, "whatever"), r"^x: cannot be used \(Read-only file system\); give this job access"),
        (
            OSError(BUSY),
            r"^x: cannot be used \(AWS Error SLOW_DOWN .*\); wait until the storage answers, then",
        ),
    ],
)
def test_what_a_user_can_do_is_said(error: OSError, message: str) -> None:
    with pytest.raises(StorageError, match=message), naming("x"):
        raise error


@pytest.mark.parametrize(
    ("status", "code"),
    [("429 Too Many Requests", "TooManyRequests"), ("500 Internal Server Error", "InternalError")],
)
def test_a_store_that_is_busy_is_asked_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, status: str, code: str
) -> None:
    uri = store.make_bucket("busy").format("a")
    store.status, store.code = status, code
    told = store.refuse_until_told(monkeypatch)

    def write() -> None:
        filesystem, path = open_filesystem(uri)
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"drawings")

    patiently(write, uri)
    assert len(told) == 1
    assert store.client.get_object(Bucket="busy", Key="a")["Body"].read() == b"drawings"


def test_a_store_whose_region_cannot_be_asked_for_is_no_wrong_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 6"
    errors = [OSError(said)]

    def from_uri(uri: str) -> tuple[object, str]:
        if errors:
            raise errors.pop()
        return object(), "b/c"

    monkeypatch.setattr(storage, "PAUSE_S", 0.0)
    monkeypatch.setattr(storage, "pafs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=from_uri)))
    assert patiently(lambda: open_filesystem("s3://b/c"), "s3://b/c")[1] == "b/c"
    errors.append(OSError(said))
    with pytest.raises(OSError, match="When resolving region"):
        open_filesystem("s3://b/c")


def test_other_errors_pass() -> None:
    for error in (
        OSError(errno.EIO, "Input/output error"),
        OSError("Couldn't deserialize thrift"),
        FileNotFoundError(),
    ):
        with pytest.raises(type(error)) as caught, naming("x"):
            raise error
        assert caught.value is error


def test_a_shard_is_asked_for_again_and_is_not_called_damaged(
    doodle_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = open_shards(doodle_shards).rows("valid")
    expected = rows.read(0, 10)
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)
    errors = [OSError(BUSY), OSError(BUSY)]
    opened = shards.pq.ParquetFile

    def refusing(*place: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return opened(*place, **options)

    monkeypatch.setattr(shards.pq, "ParquetFile", refusing)
    assert rows.read(0, 10) == expected
    assert len(caplog.messages) == 2
    errors.append(OSError(BUSY))
    monkeypatch.setattr(storage, "PATIENCE_S", -1.0)
    shard = Path(doodle_shards, rows.groups[0].shard)
    with pytest.raises(
        StorageError, match=rf"^{shard}: cannot be read \(AWS Error SLOW_DOWN .* wait until the storage"
    ):
        rows.read(0, 10)
    errors.append(OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(
        StorageError, match=rf"^{shard}: cannot be read \(Permission denied\); give this job access to it"
    ):
        rows.read(0, 10)
