"""Ingest, training, evaluation, prediction and serving on three hosts that share nothing but an object store."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hosts import Host, wait_for
from submitting import ask, deploy, places, submit, task_places

KEY = "a-key-for-the-tests"
TINY = ["--model.rnn-size", "32", "--model.rnn-layers", "1", "--batch-size", "60", "--lr", "0.01"]

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def run(client: Host, head: Host, data: str, workers: list[Host]) -> dict[str, Any]:
    """A run of two workers, one on each host."""
    flags = ["--storage-path", "s3://sketchray/runs", "--name", "first", "--num-workers", "2", "--num-epochs", "2"]
    result = submit(client, head.address, "python", "jobs/train.py", "--data", data, *flags, *TINY).result
    assert places(client, head, "RayTrainWorker") == {worker.address for worker in workers}
    return result


def test_a_run_spreads_over_the_hosts_and_lies_in_the_bucket(client: Host, head: Host, run: dict[str, Any]) -> None:
    assert run["run"] == "s3://sketchray/runs/first"
    assert run["num_workers"] == 2
    assert run["checkpoint"].startswith("s3://sketchray/runs/first/checkpoint_")
    assert run["metrics"]["val_top1"] > 0.2  # ten classes: chance is 0.1


def test_evaluation_and_prediction_read_and_write_the_bucket(
    client: Host, head: Host, workers: list[Host], data: str, run: dict[str, Any]
) -> None:
    checkpoint = ["--checkpoint", run["run"]]
    with ThreadPoolExecutor() as pool:
        evaluated = pool.submit(submit, client, head.address, "python", "jobs/evaluate.py", *checkpoint, "--data", data)
        flags = ["--format", "doodles", "--out", "s3://sketchray/guesses"]
        predicted = pool.submit(submit, client, head.address, "python", "jobs/predict.py", *checkpoint, *flags)
    assert evaluated.result().result["top1"] > 0.2
    assert predicted.result().result["drawings"] == 5000
    # Of the ingest, and of the evaluation's windows: Ray Data spreads them.
    assert task_places(client, head, "ReadRange") == {worker.address for worker in workers}


def test_a_sweep_has_trials_on_both_hosts(client: Host, head: Host, workers: list[Host], data: str) -> None:
    flags = ["--storage-path", "s3://sketchray/sweeps", "--name", "first", "--num-samples", "4", "--num-epochs", "1"]
    small = ["--fix", "batch_size=60", "--fix", "family=conv", "--max-params", "50000"]
    command = ["python", "jobs/tune.py", "--data", data, *flags, *small]
    result = submit(client, head.address, *command).result  # four trials at a time: a host has room for two
    assert (result["trials"], result["failed"]) == (4, 0)
    assert result["checkpoint"].startswith("s3://sketchray/sweeps/first/")
    assert places(client, head, "with_resources.<locals>.ResourceTrainable") == {worker.address for worker in workers}


def test_replicas_on_both_hosts_are_served_at_each_ingress(
    client: Host, head: Host, workers: list[Host], run: dict[str, Any]
) -> None:
    deploy(client, head.address, run["run"], KEY)

    record = json.dumps({"drawing": [[[0, 100, 200], [0, 50, 0]]], "top_k": 1})
    flags = ("-d", record, "-H", "content-type: application/json")
    for host in (head, *workers):
        url = f"http://{host.address}:8000"
        wait_for(lambda url=url: ask(client, f"{url}/healthz", token=None)[0] == 200, url, 120)
        assert ask(client, f"{url}/v1/classify", token=None, flags=flags)[0] == 401
        status, body = ask(client, f"{url}/v1/classify", token=KEY, flags=flags)
        assert status == 200, body
        assert ask(client, f"{url}/-/healthz", token=None)[0] == 200  # what KubeRay's probes ask
        assert len(json.loads(body)["predictions"]) == 1
    assert places(client, head, "ServeReplica:sketchray:Classifier") == {worker.address for worker in workers}
