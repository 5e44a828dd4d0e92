"""Who is let in, over real HTTP; the application on a bare uvicorn."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import ROOT
from plain_server import SQUARE, serving

from sketchray.service.keys import KEYS, KEYS_FILE, Keyring, check_door, is_loopback, read_hashes


def hashed(*keys: str) -> str:
    return "".join(f"{hashlib.sha256(key.encode()).hexdigest()} {key[:3]}'s\n" for key in keys)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# of the laboratory\n\n{hashed('from-file')}")
    return path


@pytest.fixture(scope="module")
def client(file: Path) -> Iterator[httpx.Client]:
    with serving(Keyring("old, new,", str(file))) as url, httpx.Client(base_url=url) as opened:
        yield opened


def status(client: httpx.Client, authorization: str | None, path: str = "/v1/model") -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    return client.get(path, headers=headers).status_code


def test_each_key_is_let_in_and_nothing_else(client: httpx.Client) -> None:
    for key in ("old", "new", "from-file"):
        assert status(client, f"Bearer {key}") == 200
        assert status(client, f"bearer  {key}") == 200
        assert status(client, f"Basic {key}") == status(client, key) == 401
        assert status(client, f"Bearer {key[:-1]}") == status(client, f"Bearer {key}x") == 401
    for wrong in (None, "", "Bearer", "Bearer old,new", "Bearer , new", "Bearer \u00e9".encode("latin-1")):
        assert status(client, wrong) == 401
    digest = hashlib.sha256(b"from-file").hexdigest()
    assert status(client, f"Bearer {digest}") == 401  # who reads the file has no key


def test_a_refusal_says_what_to_do_before_the_body_is_looked_at(client: httpx.Client) -> None:
    response = client.post("/v1/classify", content=b"x" * (2 << 20), headers={"content-encoding": "gzip"})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json() == {"detail": "no valid key; send the header Authorization: Bearer KEY"}


def test_page_its_assets_and_health_stay_open_and_nothing_else(client: httpx.Client) -> None:
    for path in ("/", "/web/index.html", "/healthz"):
        assert status(client, None, path) == 200
    closed = ("/v1/model", "/v1/classify", "/docs", "/openapi.json", "/nothing", "/web", "/healthz/", "//v1/model")
    for path in (*closed, "/WEB/index.html", "/v1/model?/web/"):
        assert status(client, None, path) == 401, path


def test_keys_change_with_the_file_and_a_broken_one_changes_nothing(client: httpx.Client, file: Path) -> None:
    file.write_text(hashed("from-file", "second"))
    assert status(client, "Bearer second") == status(client, "Bearer from-file") == 200
    rotated = file.with_suffix(".new")
    rotated.write_text(hashed("second"))
    os.replace(rotated, file)
    assert (status(client, "Bearer second"), status(client, "Bearer from-file")) == (200, 401)
    file.write_text("second\n")  # a key where its hash should be
    assert status(client, "Bearer second") == 200
    file.unlink()
    assert (status(client, "Bearer second"), status(client, "Bearer other")) == (200, 401)
    file.write_text("")  # no key of the file any more
    assert (status(client, "Bearer second"), status(client, "Bearer old")) == (401, 200)


def test_what_a_broken_file_holds_is_not_told(tmp_path: Path) -> None:
    bad = tmp_path / "keys"
    with pytest.raises(ValueError, match=f"{KEYS_FILE}={bad}: .*No such file"):
        Keyring(file=str(bad))
    bad.write_text(f"{hashed('good')}top-secret\n")
    with pytest.raises(ValueError, match="line 2 does not start with 64 hexadecimal digits") as caught:
        Keyring.of({KEYS_FILE: str(bad)})
    assert "top-secret" not in str(caught.value)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="utf-8"):
        read_hashes(bad)


def test_the_documented_command_makes_a_key_that_is_let_in(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    (command,) = [line.strip() for line in text.splitlines() if "secrets.token_urlsafe" in line]
    assert command.startswith("python -c '")
    code = command.removeprefix("python -c '").split("' >> ")[0]
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    keys = tmp_path / "keys.txt"
    keys.write_text(made.stdout)
    keyring = Keyring(file=str(keys))
    assert keyring.knows(b"Bearer " + made.stderr.strip().encode())
    assert made.stderr.strip() not in made.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_without_keys_loopback_is_served(host: str) -> None:
    assert is_loopback(host)
    check_door(host, Keyring.of({KEYS: " , "}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fe80::1", "example.org", "", None])
def test_without_keys_nothing_else_is_and_the_error_says_how(host: str | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"host {host}: .*set {KEYS} or {KEYS_FILE} .*runtime_env.*127.0.0.1") as error:
        check_door(host, Keyring.of({}))
    assert "\n" not in str(error.value)
    check_door(host, Keyring.of({KEYS: "a"}))
    empty = tmp_path / "keys.txt"
    empty.touch()
    check_door(host, Keyring.of({KEYS_FILE: str(empty)}))  # serves nobody, which is safe


def test_without_keys_nobody_is_asked() -> None:
    with serving() as url:
        assert httpx.post(f"{url}/v1/classify", json={"drawing": SQUARE}).status_code == 200
        assert not Keyring().guards
