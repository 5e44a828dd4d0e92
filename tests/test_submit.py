"""`ray job submit` to a cluster with token authentication."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from conftest import ROOT

RAY = Path(sys.executable).with_name("ray")


def submit(*command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submits a job with the project as its working directory, and waits for it."""
    url = ray._private.worker.global_worker.node.address_info["webui_url"]
    submission = [str(RAY), "job", "submit", "--address", f"http://{url}", "--working-dir", str(ROOT), "--"]
    for _ in range(10):
        done = subprocess.run(
            [*submission, sys.executable, *command],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        if "No available agent to submit job" not in done.stderr + done.stdout:
            break
        time.sleep(3)  # as Ray asks for where the machine is very busy
    return done


@pytest.mark.usefixtures("cluster")
def test_a_submitted_job_ends_with_its_json_and_the_right_status(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token"}
    flags = ["--format", "doodles", "--per-class", "5", "--out", str(tmp_path / "data")]
    done = submit("jobs/ingest.py", *flags, environment=token)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(lines[-1])["drawings"] == 50
    assert "wrote 1 of 1 shards" in done.stdout
    assert (tmp_path / "data" / "manifest.json").exists()

    failed = submit("jobs/ingest.py", "--source", "/nowhere", "--out", str(tmp_path / "none"), environment=token)
    assert failed.returncode != 0
    assert "error: /nowhere: no such file or directory" in failed.stdout


@pytest.mark.usefixtures("cluster")
def test_a_job_without_the_token_is_refused(tmp_path: Path) -> None:
    stranger = {"RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    done = submit("-c", f"open({str(tmp_path / 'ran')!r}, 'w')", environment=stranger)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "nauthor" in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()
