"""Hostile requests, for some seconds; `benchmarks/serve_fuzz.py` goes on as long as one likes, on the whole Serve."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from plain_server import serving


@pytest.mark.parametrize(("row", "limit"), [("bytes", "--requests=150"), ("schema", "--seconds=4")])
def test_nothing_is_answered_with_a_fault_of_ours(row: str, limit: str, tmp_path: Path) -> None:
    findings = tmp_path / "findings"
    with serving() as url:
        command = [sys.executable, str(ROOT / "benchmarks" / "serve_fuzz.py"), "--url", url, "--rows", row]
        done = subprocess.run(
            [*command, limit, "--findings", str(findings)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, (findings.read_text() if findings.exists() else "") + done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)[row]
    if row == "bytes":
        assert {"200", "422"} <= set(result["statuses"])  # it gets as far as the model
