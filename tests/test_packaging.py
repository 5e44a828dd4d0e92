"""The wheel, installed in an empty environment, has the page, the builder's files and the types."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from conftest import ROOT


def test_the_wheel_installed_elsewhere_is_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import sketchray, pathlib; print(pathlib.Path(sketchray.__file__).parent); print(sketchray.__version__)"
    output = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    installed, version = output.stdout.split()
    assert str(tmp_path) in installed

    package = ROOT / "sketchray"
    there = {
        path.relative_to(package) for path in package.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    }
    here = {path.relative_to(installed) for path in Path(installed).rglob("*") if path.is_file()}
    assert {path for path in there if not path.name.endswith(".pyc")} <= here
    for name in ("py.typed", "web/index.html", "web/draw.js", "sketch_rnn/labels.txt", "sketch_rnn/CITATIONS.bib"):
        assert Path(name) in here
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert f"Version: {version}" in text
    assert "License-Expression: Apache-2.0" in text


def test_every_requirement_is_pinned() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[tool.setuptools]")]
    names = {line.split('"')[1] for line in section.splitlines() if line.strip().startswith('"')}
    for requirement in names:
        name = requirement.split(";")[0].split(">")[0].split("[")[0].lower().replace("_", "-")
        assert name in {*pinned, "sketchray"}, f"{name} has no pin in constraints.txt"
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()
