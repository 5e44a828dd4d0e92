"""An ingest that is killed, or runs out of disk: readers refuse what it leaves, and it goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from object_store import ObjectStore

from sketchray import doodles
from sketchray.errors import DataError, RunError, find_error
from sketchray.ingest import GROUP_BYTES, ingest, plan_of
from sketchray.ingest.stage import PLAN, STAGE, Stage
from sketchray.shards import MANIFEST, open_shards
from sketchray.sources import open_source
from sketchray.strokes import to_record

PER_FILE, PAD = 12_000, "x" * 300  # more than 4 MiB a file: each is a group


@pytest.fixture(scope="module")
def source_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files of doodles, each told from the others by a dot."""
    directory = tmp_path_factory.mktemp("in")
    for number, name in enumerate(doodles.CLASSES[:5]):
        drawings = [json.dumps(to_record(doodles.draw(name, index)))[1:-1] for index in range(50)]
        with open(directory / f"{name}.ndjson", "w") as file:
            for index in range(PER_FILE):
                key, dot = number * PER_FILE + index, f"[[{index % 256}],[{index // 256}]]"
                drawing = f"{drawings[index % 50]},{dot}"
                file.write(f'{{"word":"{name}","ignored":"{PAD}","key_id":"{key}","drawing":[{drawing}]}}\n')
        assert (directory / f"{name}.ndjson").stat().st_size > GROUP_BYTES / 2
    return directory


@pytest.fixture(scope="module")
def whole(cluster: str, source_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an ingest that nobody disturbs writes."""
    out = tmp_path_factory.mktemp("data") / "whole"
    again(source_dir, out)
    return contents(out)


def again(source_dir: Path, out: Path, **options: int) -> None:
    ingest(open_source(str(source_dir)), str(out), num_shards=12, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def is_seen(out: Path, pattern: str, number: int) -> bool:
    return len(list(out.glob(pattern))) >= number


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        (f"{STAGE}/{PLAN}", 1),
        (f"{STAGE}/run-*", 1),
        (f"{STAGE}/group-*.json", 2),
        ("shard-*", 1),
        (f"{STAGE}/shard-*.json", 7),
        ("card.html", 1),
    ],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    cluster: str, source_dir: Path, tmp_path: Path, whole: dict[str, bytes], pattern: str, number: int
) -> None:
    out = tmp_path / "out"
    flags = ["--source", str(source_dir), "--num-shards", "12", "--out", str(out)]
    command = [sys.executable, "jobs/ingest.py", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": cluster}, stdout=subprocess.DEVNULL, start_new_session=True
    ) as job:
        while job.poll() is None and not is_seen(out, pattern, number):
            time.sleep(0.001)
        os.killpg(job.pid, signal.SIGKILL)
    assert is_seen(out, pattern, number)
    if MANIFEST not in contents(out):
        with pytest.raises(DataError, match="not a complete data set"):
            open_shards(str(out))
        with pytest.raises(DataError, match="is not finished"):
            open_source(str(out))
    settle(out)
    if MANIFEST not in contents(out) or (out / STAGE / PLAN).exists():
        again(source_dir, out)
    assert contents(out) == whole


def settle(out: Path) -> None:
    """Waits until tasks of the killed job, which Ray stops a moment later, write no more."""
    before: list[tuple[str, int]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = sorted((path.name, path.stat().st_mtime_ns) for path in out.rglob("*"))
        if now == before:
            return
        before = now
        time.sleep(1)
    raise AssertionError("the killed job still writes")


@pytest.mark.usefixtures("cluster")
def test_what_is_done_is_not_done_again(
    source_dir: Path, tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    stop_before(source_dir, out, "shard-00004-of-00012.parquet")
    done = [path for path in (out / STAGE).iterdir() if path.suffix == ".arrow"]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert done
    assert before
    with caplog.at_level("INFO"):
        again(source_dir, out)
    assert contents(out) == whole
    assert not any(message.startswith("read ") for message in caplog.messages)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def stop_before(source_dir: Path, out: Path, name: str) -> None:
    """Runs an ingest up to a shard that cannot be written, since a directory has its name."""
    Stage(str(out)).open(plan_of(open_source(str(source_dir)), seed=0, num_shards=12, strict=False))
    (out / name).mkdir()
    with pytest.raises(Exception) as caught:  # noqa: PT011  Ray wraps it in a class of its own
        again(source_dir, out)
    assert isinstance(find_error(caught.value), RunError)
    (out / name).rmdir()


@pytest.mark.usefixtures("cluster")
def test_other_flags_do_not_go_on(source_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_before(source_dir, out, "shard-00004-of-00012.parquet")
    before = contents(out / STAGE)
    with pytest.raises(DataError, match="holds an unfinished ingest of another source, or with other flags"):
        again(source_dir, out, seed=1)
    assert contents(out / STAGE) == before


def test_a_store_that_refuses_for_a_while_is_asked_again(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(store.make_bucket("out").format("data"))
    stage.open({})
    told = store.refuse_until_told(monkeypatch)
    stage.write("shard-00000-of-00001.parquet", b"drawings")
    assert [line.partition(" (")[0] for line in told] == [f"--out {stage.out}: the storage refuses, trying again"]
    assert store.client.get_object(Bucket="out", Key="data/shard-00000-of-00001.parquet")["Body"].read() == b"drawings"


def test_a_full_disk_is_named_and_what_is_complete_stays(
    source_dir: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    stage = Stage(str(out))
    stage.open(plan_of(open_source(str(source_dir)), seed=0, num_shards=12, strict=False))
    full = out / STAGE / "run-00004-000.arrow"
    full.symlink_to("/dev/full")
    with pytest.raises(Exception) as caught:  # noqa: PT011  Ray wraps it in a class of its own
        again(source_dir, out)
    message = str(find_error(caught.value))
    assert f"--out {out}: cannot be used" in message
    assert "No space left on device" in message
    assert "run the same command again to go on" in message
    assert stage.reports("group")
    full.unlink()
    again(source_dir, out)
    assert contents(out) == whole
