"""What HAProxy is told, read by Ray's template and by HAProxy itself."""

import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from ray.serve._private import constants
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig, get_haproxy_binary

from sketchray.haproxy import ENVIRONMENT, LINES
from sketchray.service.settings import Settings


def test_the_config_files_say_the_same() -> None:
    kuberay = yaml.safe_load((ROOT / "deploy" / "kuberay" / "serve.yaml").read_text())
    for text in ((ROOT / "serve_config.yaml").read_text(), kuberay["spec"]["serveConfigV2"]):
        config = yaml.safe_load(text)
        assert config["controller_options"]["runtime_env"]["env_vars"] == ENVIRONMENT
        assert Settings.model_validate(config["applications"][0]["args"]).backend == "onnx"


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_ray_knows_each_variable(name: str) -> None:
    assert f'"{name}"' in Path(constants.__file__).read_text()


def test_haproxy_takes_what_ray_makes_of_it(tmp_path: Path) -> None:
    config = HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
        balance_algorithm=ENVIRONMENT["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"],
        retry_on=ENVIRONMENT["RAY_SERVE_HAPROXY_RETRY_ON"],
        retries=int(ENVIRONMENT["RAY_SERVE_HAPROXY_RETRIES"]),
        health_check_inter=ENVIRONMENT["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"],
    )
    backend = BackendConfig(
        name="sketchray", path_prefix="/", app_name="sketchray", servers=[ServerConfig("replica", "127.0.0.1", 30_000)]
    )
    file = tmp_path / "haproxy.cfg"
    HAProxyApi(config, {"sketchray": backend}, str(file))._generate_config_file_internal()
    sections: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith((" ", *LINES)):
            section = sections.setdefault(line, [])
        elif line:
            section.append(line.strip())
    defaults = sections["defaults"]
    assert set(LINES[1:]) <= set(defaults)
    # The last one counts, and Ray's makes a 500 of it.
    assert max(defaults.index(line) for line in defaults if line.startswith("errorfile 503")) < defaults.index(
        LINES[-1]
    )
    checked = subprocess.run([get_haproxy_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
