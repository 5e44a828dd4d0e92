"""deploy/kuberay: resources that fit a trimmed schema of KubeRay's, Ray's own of Serve, and the jobs' flags."""

import re
import runpy
import shlex
import sys
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT
from kuberay_schema import schema_of
from ray.serve.schema import ServeDeploySchema

from sketchray import command
from sketchray.service import Settings

FOLDER = ROOT / "deploy" / "kuberay"
RESOURCES = {"cluster": "RayCluster", "train": "RayJob", "tune": "RayJob", "serve": "RayService"}
SPEC_OF_CLUSTER = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


def read(name: str) -> dict[str, Any]:
    """A resource."""
    return dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    """The cluster of a resource."""
    spec = read(name)["spec"]
    field = SPEC_OF_CLUSTER[RESOURCES[name]]
    return dict(spec[field] if field else spec)


@pytest.mark.parametrize(("name", "kind"), RESOURCES.items())
def test_a_resource_fits_the_schema(name: str, kind: str) -> None:
    jsonschema.Draft202012Validator(schema_of(kind)).validate(read(name))


def test_the_schema_refuses_a_misspelt_field_and_a_number_for_text() -> None:
    resource = read("cluster")
    resource["spec"]["workerGroupSpec"] = resource["spec"].pop("workerGroupSpecs")
    with pytest.raises(jsonschema.ValidationError, match="workerGroupSpec"):
        jsonschema.validate(resource, schema_of("RayCluster"))
    resource = read("cluster")
    resource["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(resource, schema_of("RayCluster"))


@pytest.mark.parametrize("name", RESOURCES)
def test_a_cluster_has_the_pinned_ray_the_token_and_an_idle_head(name: str) -> None:
    cluster = cluster_of(name)
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == pinned
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    images = set()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        wants_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert wants_gpu == ("nodeSelector" in pod) == ("tolerations" in pod)
    assert len(images) == 1


@pytest.mark.parametrize("name", ["train", "tune"])
def test_the_job_takes_its_flags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python, job, *flags = shlex.split(read(name)["spec"]["entrypoint"])
    assert python == "python"
    seen: list[Any] = []
    monkeypatch.setattr(sys, "argv", [job, *flags])
    monkeypatch.setattr(command, "run", lambda kind, call, *defaults: seen.append((kind, *defaults)))
    runpy.run_path(str(ROOT / job.removeprefix("/opt/sketchray/")), run_name="__main__")
    ((kind, *defaults),) = seen
    arguments = command._parse(kind, defaults[0](flags) if defaults else {})
    assert arguments.use_gpu
    assert arguments.data == "/data/quickdraw"
    if name == "train":
        least, most = arguments.num_workers
        assert {arguments.train.batch_size % size for size in range(least, most + 1)} == {0}


def test_the_service_fits_serves_schema_and_the_application_and_asks_for_keys() -> None:
    resource = read("serve")
    written = yaml.safe_load(resource["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(written)
    assert schema.model_dump(mode="json", exclude_unset=True) == written
    (application,) = schema.applications
    Settings.model_validate(application.args)
    beside = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert written["controller_options"] == beside["controller_options"]
    assert set(written["applications"][0]["args"]) == set(beside["applications"][0]["args"])
    assert schema.http_options.host == "0.0.0.0"
    assert schema.proxy_location == "EveryNode"

    keys = application.runtime_env["env_vars"]["SKETCHRAY_API_KEYS_FILE"]
    cluster = cluster_of("serve")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert any(keys.startswith(f"{mount['mountPath']}/") for mount in mounts)


def test_the_head_keeps_its_state_in_the_redis_that_is_there() -> None:
    options = cluster_of("serve")["gcsFaultToleranceOptions"]
    service, redis = yaml.safe_load_all((FOLDER / "redis.yaml").read_text())
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_the_volume_is_the_one_that_pods_ask_for() -> None:
    claim = yaml.safe_load((FOLDER / "storage.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in RESOURCES:
        volumes = cluster_of(name)["headGroupSpec"]["template"]["spec"]["volumes"]
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if volume["name"] == "data"]
        assert claims == [claim["metadata"]["name"]]


def test_the_image_has_what_a_node_needs() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / path).exists() for path in copied)
    assert {"sketchray", "jobs", "constraints.txt"} <= set(copied)
    assert "WORKDIR /opt/sketchray" in lines
