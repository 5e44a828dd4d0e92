"""The cluster files, serve_config.yaml and .rayignore, read by Ray's own code; no account, no machine."""

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from sketchray.service import Settings


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """cluster.yaml as it stands."""
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def config(written: dict[str, Any]) -> dict[str, Any]:
    """cluster.yaml with Ray's defaults filled in, as `ray up` has it before it asks AWS."""
    return dict(prepare_config(written))


def test_the_cluster_config_fits_rays_schema(config: dict[str, Any]) -> None:
    validate_config(config)


def test_the_cluster_of_ones_own_machines_fits_too_and_has_the_same_shape(written: dict[str, Any]) -> None:
    local = yaml.safe_load((ROOT / "deploy" / "cluster-local.yaml").read_text())
    validate_config(prepare_config(local))
    assert local["file_mounts"] == written["file_mounts"]
    (aws,) = [command for command in written["head_start_ray_commands"] if "ray start" in command]
    assert [command.strip() for command in local["head_start_ray_commands"]] == ["ray stop", aws.strip()]
    assert local["worker_start_ray_commands"] == written["worker_start_ray_commands"]
    installs = [[line for line in config["setup_commands"] if "ray[" in line] for config in (local, written)]
    assert installs[0] == installs[1] != []


def test_what_is_mounted_is_there(written: dict[str, Any]) -> None:
    for remote, local in written["file_mounts"].items():
        assert remote.startswith("~/")
        if not local.startswith("~"):  # the token is made by the user
            assert (ROOT / local).exists()


def test_the_cluster_runs_the_pinned_ray(config: dict[str, Any]) -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for commands in (config["head_setup_commands"], config["worker_setup_commands"]):
        assert re.findall(r"\bray\[[\w,]+\]==([\w.]+)", " ".join(commands)) == [pinned]
        assert any("-c ~/sketchray/constraints.txt" in command for command in commands)


def test_the_head_reserves_nothing_for_training(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--num-cpus=0 " in start


def test_workers_start_from_zero_and_add_up_to_the_bound(config: dict[str, Any]) -> None:
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    # The jobs add up the node types; a lower bound would leave them waiting for machines that never come.
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]
    assert all(kind["resources"]["CPU"] >= 2 for kind in workers.values())  # one to train, one to read


def test_the_dashboard_is_not_public_and_all_of_ray_wants_the_token(config: dict[str, Any]) -> None:
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    starts = [command for command in head + workers if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert not any("0.0.0.0" in command for command in head + workers)
    assert "security_group" not in config["provider"]  # no port is opened beside Ray's own, SSH
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_serve_config_fits_serves_schema_and_the_application() -> None:
    written = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(written)
    # The schema drops keys that it does not know, a misspelt one too; so everything must come out again.
    assert schema.model_dump(mode="json", exclude_unset=True) == written
    assert schema.http_options.host == "127.0.0.1"
    for application in schema.applications:
        Settings.model_validate(application.args)


def test_a_job_uploads_the_code_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=False, excludes=[])  # .rayignore alone must do
    with zipfile.ZipFile(package) as archive:
        sizes = {Path(entry.filename): entry.file_size for entry in archive.infolist()}
    assert {path.relative_to(ROOT) for path in (ROOT / "jobs").glob("*.py")} <= set(sizes)
    assert Path("sketchray/web/index.html") in sizes
    assert not {path.parts[0] for path in sizes} & {".git", ".venv", ".demo", "tests", "benchmarks", "docs", "models"}
    assert not any("__pycache__" in path.parts for path in sizes)
    assert sum(size for path, size in sizes.items() if path.parts[0] in ("jobs", "sketchray")) < 1e6
