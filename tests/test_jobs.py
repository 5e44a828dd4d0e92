"""Every job as a process: JSON last, one line for an error, the right exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from sketchray import doodles
from sketchray.strokes import to_record

JOBS = ("ingest", "train", "tune", "evaluate", "predict", "export")
METRICS = {"split", "drawings", "loss", "top1", "top5", "map3", "ece", "early", "drawings_per_s"}


def job(name: str, *flags: str, address: str = "local") -> subprocess.CompletedProcess[str]:
    """Runs a job as a user does."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON of a job that went well: the last line on stdout."""
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a job that failed."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", JOBS)
def test_help_shows_defaults(name: str) -> None:
    done = job(name, "--help")
    assert done.returncode == 0
    assert "(required)" in done.stdout
    assert "(default: " in done.stdout


@pytest.mark.parametrize("name", JOBS)
def test_usage_errors_exit_with_2(name: str) -> None:
    assert job(name, "--no-such-flag").returncode == 2
    assert job(name).returncode == 2


def test_the_whole_path(cluster: str, tmp_path: Path) -> None:
    data, runs = str(tmp_path / "data"), str(tmp_path / "runs")
    ingested = job("ingest", "--format", "doodles", "--per-class", "60", "--out", data, address=cluster)
    assert result(ingested)["drawings"] == 600
    assert set(result(ingested)) == {
        "out", "drawings", "classes", "splits", "duplicates", "quarantined", "drawings_per_s",
    }  # fmt: skip

    flags = ["--data", data, "--storage-path", runs, "--name", "first", "--preset", "conv1d", "--num-epochs", "2"]
    trained = job("train", *flags, "--batch-size", "32", "--num-workers", "2", address=cluster)
    assert {"run", "checkpoint", "metrics", "drawings_per_s"} <= set(result(trained))
    assert result(trained)["run"] == f"{runs}/first"

    checkpoint = ["--checkpoint", f"{runs}/first"]
    report = tmp_path / "report"
    evaluated = job("evaluate", *checkpoint, "--data", data, "--report", str(report), address=cluster)
    scores = result(evaluated)
    assert set(scores) == METRICS
    assert set(scores["early"]) == {"25", "50", "75", "100"}
    assert scores["early"]["100"] == scores["top1"]
    assert "<h2>What it confuses</h2>" in (report / "report.html").read_text()
    assert "drawings/s" in evaluated.stderr

    exported = tmp_path / "model.onnx"
    assert result(job("export", *checkpoint, "--out", str(exported)))["largest_difference"] < 1e-4
    through_onnx = job("evaluate", "--checkpoint", str(exported), "--data", data, address=cluster)
    assert result(through_onnx)["top1"] == scores["top1"]

    source = tmp_path / "new.ndjson"
    source.write_text(
        "".join(json.dumps({"drawing": to_record(doodles.draw("star", index, 50))}) + "\n" for index in range(30))
    )
    flags = ["--source", str(source), "--format", "simplified", "--out", str(tmp_path / "guesses")]
    assert result(job("predict", *checkpoint, *flags, address=cluster))["drawings"] == 30
    table = pq.read_table(tmp_path / "guesses")
    assert table.schema.names == ["key_id", "class", "label", "probability", "top"]
    assert set(table["label"].to_pylist()) <= set(doodles.CLASSES)
    assert all(len(top) == 5 for top in table["top"].to_pylist())


def test_a_sweep_ends_with_a_checkpoint_and_a_config(cluster: str, doodle_shards: str, tmp_path: Path) -> None:
    flags = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--name", "sweep", "--num-samples", "2"]
    flags += ["--num-epochs", "1", "--fix", "batch_size=64", "--fix", "family=conv", "--max-params", "50000"]
    done = job("tune", *flags, address=cluster)
    best = result(done)
    assert (best["trials"], best["failed"]) == (2, 0)
    assert "trials 2/2: 2 finished; 0 running; best val_top1" in done.stderr
    assert best["metrics"]["val_top1"] >= 0
    assert Path(best["checkpoint"], "meta.json").exists()
    config = tmp_path / "sweep" / "best.json"
    again = ["--data", doodle_shards, "--storage-path", str(tmp_path), "--name", "again", "--config", str(config)]
    trained = result(job("train", *again, "--num-epochs", "1", address=cluster))
    stored = json.loads((tmp_path / "again" / "config.json").read_text())
    assert stored["model"] == json.loads(config.read_text())["model"]
    assert trained["metrics"]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("ingest", "--source {tmp}/nowhere --out {tmp}/o", "{tmp}/nowhere: no such file or directory; name"),
        ("ingest", "--source {tmp}/empty.ndjson --out {tmp}/o", "{tmp}/empty.ndjson: empty, or of no format that is"),
        ("ingest", "--source {tmp}/text.ndjson --out {tmp}/o", "{tmp}/text.ndjson: empty, or of no format that is"),
        ("ingest", "--source {tmp}/text.ndjson --format raw --out {tmp}/o", "no drawing in the source: not JSON"),
        ("ingest", "--source {tmp}/nothing.ndjson --strict --out {tmp}/o", "{tmp}/nothing.ndjson:2: drawing: expected"),
        ("ingest", "--source {tmp}/nothing.ndjson --per-class 0 --out {tmp}/o", "--per-class 0: must be at least 1"),
        ("ingest", "--source quickdraw --format csv --out {tmp}/o", "Google's bucket has simplified, raw, binary, npz"),
        ("ingest", "--source quickdraw --classes kat --out {tmp}/o", "class 'kat': Quick, Draw! has none of this name"),
        ("ingest", "--source ftq://host/a --out {tmp}/o", "ftq://host/a: cannot be opened"),
        ("ingest", "--format doodles --classes unicorn --out {tmp}/o", "--classes 'unicorn': no such doodle"),
        ("ingest", "--format doodles --out {data}", "{data}: already holds a data set"),
        ("train", "--data {tmp} --storage-path {tmp}/r --name a", "{tmp}: no manifest.json"),
        ("train", "--data {old} --storage-path {tmp}/r --name a", "data format version 0, this sketchray reads 2"),
        ("train", "--data {data} --storage-path {tmp}/r --name a --num-workers 9", "more workers than the cluster"),
        ("train", "--data {data} --storage-path {tmp}/r --name a --config {tmp}/text.ndjson", "--config {tmp}/text"),
        ("train", "--data {data} --storage-path {run}/.. --name tiny", "is in use; choose another name"),
        ("evaluate", "--checkpoint {tmp} --data {data}", "{tmp}: holds no whole checkpoint"),
        ("evaluate", "--checkpoint {tmp}/nowhere --data {data}", "{tmp}/nowhere: no such directory"),
        ("predict", "--checkpoint {run} --source {tmp}/nowhere --out {tmp}/o", "{tmp}/nowhere: no such file"),
        ("export", "--checkpoint {run} --out {tmp}/o.bin", "name a file that ends in .onnx"),
        ("tune", "--data {tmp}/nowhere --storage-path {tmp}/r --name a", "{tmp}/nowhere: no such directory"),
        ("tune", "--data {data} --storage-path {tmp}/r --name a --fix model.cell=x", "model.cell: Input should be"),
        ("tune", "--data {data} --storage-path {tmp}/r --name a --max-params 9", "the smallest model of the space has"),
        ("tune", "--data {data} --storage-path {tmp}/r --name a --resume", "--resume: there is no sweep {tmp}/r/a"),
        ("tune", "--data {data} --storage-path {tmp}/r --name a --num-workers 4", "more workers than the cluster"),
        ("tune", "--data {data} --storage-path {tmp}/r --name a --max-concurrent-trials 3", "3 trials x 1 workers = 3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cluster: str, doodle_shards: str, run: str, tmp_path: Path, name: str, flags: str, message: str
) -> None:
    (tmp_path / "empty.ndjson").touch()
    (tmp_path / "text.ndjson").write_text("hello\n")
    (tmp_path / "nothing.ndjson").write_text('{"word":"a","drawing":[[[1],[2]]]}\n{"word":"a","drawing":[]}\n')
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"format_version": 0}')
    before = sorted(tmp_path.rglob("*"))
    places = {"tmp": tmp_path, "data": doodle_shards, "run": run, "old": tmp_path / "old"}
    done = job(name, *flags.format(**places).split(), address=cluster)
    assert message.format(**places) in error(done)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_class_of_the_data_is_named(cluster: str, run: str, tmp_path: Path) -> None:
    source = tmp_path / "unicorn.ndjson"
    source.write_text("".join(json.dumps({"drawing": [[[0, 9 + i], [0, 255]]]}) + "\n" for i in range(40)))
    data = str(tmp_path / "data")
    result(job("ingest", "--source", str(source), "--out", data, address=cluster))
    message = error(job("evaluate", "--checkpoint", run, "--data", data, "--split", "all", address=cluster))
    assert "class 'unicorn' is not one of the 10" in message
