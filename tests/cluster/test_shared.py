"""A path that one host has and another has not is refused before anything runs."""

import pytest
from hosts import Host
from submitting import submit

pytestmark = pytest.mark.timeout(600)


def test_a_storage_path_that_is_not_shared_is_refused_before_anything_runs(
    client: Host, head: Host, data: str, workers: list[Host]
) -> None:
    run = ["--data", data, "--name", "local", "--preset", "seed", "--num-workers", "2"]
    refused = submit(client, head.address, "python", "jobs/train.py", *run, "--storage-path", "/tmp/runs/here")
    assert refused.error.startswith("error: --storage-path /tmp/runs/here: node h")
    assert refused.error.endswith(
        "does not see what is written there; "
        "name a directory that every node mounts at this path, or a bucket (s3://, gs://)"
    )
    assert any(f"node {worker.name} ({worker.address})" in refused.error for worker in workers)
    assert not any((host.folder / "tmp" / "runs").exists() for host in (head, *workers))
