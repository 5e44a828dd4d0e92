"""URIs: streams from a server that misbehaves, an S3 server, and what is said of those that cannot be opened."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from flaky_server import Answer, FlakyServer, crc32c, doodle_file
from object_store import ObjectStore
from test_download import FAST, MENDED

from sketchray.errors import DataError
from sketchray.fetch.remote import is_web, list_uris, open_stream, open_uri

CAT = "full/raw/cat.ndjson"
EIFFEL = "The Eiffel Tower.ndjson"
CONTENT = doodle_file("cat", 600)
SIZE = len(CONTENT)


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with FlakyServer({CAT: CONTENT}) as running:
        yield running


def resumable(answer: Answer) -> bool:
    """Whether an answer leaves a reader of the first bytes in the position to go on."""
    harmless = answer.headers.keys().isdisjoint({"ETag", "x-goog-hash", "Content-Length"})
    return harmless and answer.content is None and answer.status not in (206, 416)


STREAMED = [case for case, answers in MENDED.items() if all(map(resumable, answers))]


@pytest.mark.parametrize("case", STREAMED)
def test_a_stream_is_mended_unseen(server: FlakyServer, case: str) -> None:
    server.script = list(MENDED[case])
    with open_stream(server.url_of(CAT), FAST) as file:
        assert b"".join(file) == CONTENT
    assert server.script == []


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_is_whole_however_it_is_read(server: FlakyServer, seed: int) -> None:
    rng = random.Random(seed)
    server.script = [Answer(cut=rng.randrange(SIZE), ranges=rng.random() < 0.5) for _ in range(3)]
    found = []
    with open_uri(server.url_of(CAT), limits=FAST) as file:
        assert not file.seekable()
        while piece := file.read(rng.randrange(1, 30_000)):
            found.append(piece)
    assert b"".join(found) == CONTENT


REFUSED = {
    "changed": ([Answer(cut=SIZE // 2), Answer(content=b"other")], "the file has changed meanwhile, and what was read"),
    "no ETag": ([Answer(cut=SIZE // 2, headers={"ETag": None})], "IncompleteRead.*, and what was read"),
    "wrong hash": ([Answer(headers={"x-goog-hash": f"crc32c={crc32c(b'')}"})], "its crc32c is .*, and what was read"),
    "truncated": ([Answer(content=CONTENT[:-7], headers={"x-goog-hash": f"crc32c={crc32c(CONTENT)}"})], "its crc32c"),
    "404": ([Answer(status=404)], "404 Not Found"),
    "503": ([Answer(status=503)] * 4, "503 Service Unavailable, at byte 0, after 4 attempts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stream_that_cannot_be_trusted_is_a_clear_error(server: FlakyServer, case: str) -> None:
    server.script, message = list(REFUSED[case][0]), REFUSED[case][1]
    with open_stream(server.url_of(CAT), FAST) as file, pytest.raises(DataError, match=message):
        file.read()


def test_a_stream_closed_early_costs_the_beginning_only(server: FlakyServer) -> None:
    server.files[CAT] = bytes(64 << 20)
    server.always = Answer(headers={"x-goog-hash": None})
    with open_stream(server.url_of(CAT), FAST) as file:
        assert len(file.read(100_000)) == 100_000
    (request,) = server.requests
    server.__exit__(None, None, None)  # waits for the end of the answer
    assert request.sent < 32 << 20  # what the buffers of both sockets hold


def test_what_is_no_url_is_refused() -> None:
    assert is_web("https://host/cat.ndjson")
    assert not is_web("s3://bucket/cat.ndjson")
    for url in ("http://", "http://[/cat"):
        with open_uri(url) as file, pytest.raises(DataError, match="not a URL that can be read"):
            file.read()


@pytest.mark.parametrize("prefix", ["file://", ""])
def test_local_files_are_listed_by_name(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("dog.ndjson", EIFFEL, "cat [1].ndjson", "inner/owl.ndjson", "cat.bin"):
        (tmp_path / name).write_bytes(name.encode())
    found = list_uris(f"{prefix}{tmp_path}")
    assert [uri.rpartition("/")[2] for uri in found] == [EIFFEL, "cat [1].ndjson", "cat.bin", "dog.ndjson"]
    assert [open_uri(uri).read().decode() for uri in found] == [uri.rpartition("/")[2] for uri in found]
    assert list_uris(f"{prefix}{tmp_path}/*.ndjson") == [uri for uri in found if uri.endswith("ndjson")]
    assert list_uris(f"{prefix}{tmp_path}/cat [1].ndjson") == [f"{prefix}{tmp_path}/cat [1].ndjson"]
    with pytest.raises(DataError, match="there is no such file, directory or bucket"):
        list_uris(f"{prefix}{tmp_path}/nothing")
    with pytest.raises(DataError, match="no file is there"):
        list_uris(f"{prefix}{tmp_path}/*.csv")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server, named by the usual environment variables, and the URI of a directory on it."""
    import s3fs

    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store.make_bucket("drawings")
        for key in (f"full/{EIFFEL}", "full/cat.ndjson", "full/inner/dog.ndjson", "full/cat.bin"):
            store.client.put_object(Bucket="drawings", Key=key, Body=doodle_file(Path(key).stem))
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://drawings/full"
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_directory_on_s3_is_listed_and_read(s3: str) -> None:
    assert list_uris(s3) == list_uris(f"{s3}/") == [f"{s3}/{EIFFEL}", f"{s3}/cat.bin", f"{s3}/cat.ndjson"]
    assert list_uris(f"{s3}/*.ndjson") == [f"{s3}/{EIFFEL}", f"{s3}/cat.ndjson"]
    assert list_uris(f"{s3}/**/*.ndjson") == [f"{s3}/{EIFFEL}", f"{s3}/cat.ndjson", f"{s3}/inner/dog.ndjson"]
    assert list_uris(f"{s3}/cat.bin") == [f"{s3}/cat.bin"]
    with open_uri(f"{s3}/{EIFFEL}") as file:
        assert file.read() == doodle_file("The Eiffel Tower")
        file.seek(10)
        assert file.read(5) == doodle_file("The Eiffel Tower")[10:15]


@pytest.mark.parametrize("uri", ["s3://drawings/nothing", "s3://no-such-bucket/full", "s3://no-such-bucket/*.ndjson"])
def test_what_is_not_on_s3_is_a_clear_error(s3: str, uri: str) -> None:
    with pytest.raises(DataError, match=r"there is no such file, directory or bucket|no file is there"):
        list_uris(uri)
    with pytest.raises(DataError, match="there is no such file, directory or bucket"):
        open_uri(uri)


class CloudStorage(BaseHTTPRequestHandler):
    """The two questions of Google's JSON API that readers ask: which objects begin with this, and what is in one."""

    objects: ClassVar = {f"full/{EIFFEL}": b"tower", "full/cat.ndjson": b"cat", "full/inner/dog.ndjson": b"dog"}

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        _, _, name = unquote(parts.path).partition("/b/drawings/o/")
        prefix = parse_qs(parts.query).get("prefix", [""])[0]
        assert "Authorization" not in self.headers
        if name in self.objects:
            described = json.dumps({"name": name, "bucket": "drawings", "size": len(self.objects[name])}).encode()
            body = self.objects[name] if parts.path.startswith("/download") else described
        elif parts.path.endswith("/b/drawings/o"):
            below = {key for key in self.objects if key.startswith(prefix)}
            flat = sorted(key for key in below if "/" not in key[len(prefix) :])
            items = [{"name": key, "bucket": "drawings", "size": len(self.objects[key])} for key in flat]
            body = json.dumps(
                {"items": items, "prefixes": [prefix + "inner/"] if flat < sorted(below) else []}
            ).encode()
        else:
            body = b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that speaks as Google Cloud Storage does, to whom nobody has to say who they are."""
    import gcsfs

    server = ThreadingHTTPServer(("127.0.0.1", 0), CloudStorage)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield "gs://drawings/full"
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_public_directory_on_gs_is_listed_and_read_by_anyone(gs: str, caplog: pytest.LogCaptureFixture) -> None:
    assert list_uris(gs) == list_uris(f"{gs}/*.ndjson") == [f"{gs}/{EIFFEL}", f"{gs}/cat.ndjson"]
    with open_uri(f"{gs}/{EIFFEL}") as file:
        assert file.read() == b"tower"
    with pytest.raises(DataError, match="there is no such file, directory or bucket"):
        list_uris("gs://drawings/nothing")
    assert not caplog.records


def said_of(uri: str, statement: str = "") -> str:
    """What a fresh process without any credentials, on a machine without a network, says of a URI."""
    code = f"import sys\n{statement}\nfrom sketchray.fetch.remote import list_uris\nlist_uris({uri!r})"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_", "GOOGLE_"))}
    environment = {
        **kept,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "HOME": "/nowhere",
    }
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    return process.stderr.splitlines()[-1]


def test_missing_credentials_are_named() -> None:
    assert "Unable to locate credentials); set AWS_ACCESS_KEY_ID" in said_of("s3://bucket/*.ndjson")


@pytest.mark.parametrize(("uri", "package"), [("s3://bucket/*.ndjson", "s3fs"), ("gs://bucket/*.ndjson", "gcsfs")])
def test_a_missing_package_is_named(uri: str, package: str) -> None:
    assert said_of(uri, f"sys.modules[{package!r}] = None").endswith(f"; pip install {package}")


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"foo://x: cannot be opened .*Protocol not known: foo\); known are gcs, gs, s3"
    ):
        list_uris("foo://x")
