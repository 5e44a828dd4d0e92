"""What a job would upload, told before it is sent."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from sketchray.errors import Error
from sketchray.upload import LIMIT_BYTES, check_upload, pack


def upload(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sketchray.upload", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_project_goes_out_in_less_than_a_megabyte_without_models_and_tests() -> None:
    done = upload()
    assert done.returncode == 0, done.stderr
    assert "MB in" in done.stdout
    size, files = pack(ROOT)
    assert size < LIMIT_BYTES
    assert {"jobs/train.py", "sketchray/web/index.html"} <= set(files)
    assert not {name.partition("/")[0] for name in files} & {".git", ".venv", "deploy", "docs", "models", "tests"}


def test_a_large_file_is_named_and_an_ignored_one_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print()")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "drawings.bin").write_bytes(bytes(range(256)) * 10)
    assert "0.00 MB in 2 files" in check_upload(tmp_path)
    with pytest.raises(
        Error, match=r"0.00 MB in 2 files .* the largest is data/drawings.bin \(.*name it in .rayignore"
    ):
        check_upload(tmp_path, limit_bytes=100)
    (tmp_path / ".rayignore").write_text("/data\n")
    check_upload(tmp_path, limit_bytes=1000)
    assert pack(tmp_path)[1].keys() == {"job.py", ".rayignore"}


def test_no_directory_is_an_error_in_one_line() -> None:
    done = upload("nowhere")
    assert done.returncode == 1
    assert done.stderr == "error: nowhere: no such directory; name the one that `--working-dir` gets\n"
    assert upload("a", "b").returncode == 2
