"""What the custom resources of KubeRay 1.6 may hold, as far as deploy/kuberay uses them, in words of our own.

No package on the index has the resource definitions themselves. This is a trimmed schema, written from KubeRay's API
reference (docs.ray.io, "KubeRay CRD API reference"): a field that is not here may well exist there, and has to be
looked up before it is added. Kubernetes prunes or refuses a misspelt field; here it is an error.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}  # values are text: "0", not 0


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object of these fields only."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def many(items: Schema, least: int = 1) -> Schema:
    """A list of them."""
    return {"type": "array", "items": items, "minItems": least}


SECRET_KEY = fields("secretKeyRef", secretKeyRef=fields("name key", name=TEXT, key=TEXT))
QUANTITIES: Schema = {
    "type": "object",
    "propertyNames": {"enum": ["cpu", "memory", "nvidia.com/gpu"]},
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"},
}
CONTAINER = fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    ports=many(fields("containerPort", containerPort={"type": "integer", "minimum": 1, "maximum": 65535}, name=TEXT)),
    env=many(fields("name", name=TEXT, value=TEXT, valueFrom=SECRET_KEY)),
    envFrom=many(fields(secretRef=fields("name", name=TEXT, optional={"type": "boolean"}))),
    resources=fields("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=many(fields("name mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
)
POD_TEMPLATE = fields(
    "spec",
    spec=fields(
        "containers",
        securityContext=fields(fsGroup=COUNT),
        nodeSelector=TEXTS,
        tolerations=many(
            fields(
                key=TEXT,
                operator={"enum": ["Exists", "Equal"]},
                effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            )
        ),
        containers=many(CONTAINER),
        volumes=many(
            fields(
                "name",
                name=TEXT,
                persistentVolumeClaim=fields("claimName", claimName=TEXT),
                secret=fields("secretName", secretName=TEXT),
            )
        ),
    ),
)
CLUSTER_SPEC = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    gcsFaultToleranceOptions=fields(
        "redisAddress",
        redisAddress=TEXT,
        redisPassword=fields(value=TEXT, valueFrom=SECRET_KEY),
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=fields("rayStartParams template", rayStartParams=TEXTS, template=POD_TEMPLATE),
    workerGroupSpecs=many(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD_TEMPLATE,
        )
    ),
)
SPECS: dict[str, Schema] = {
    "RayCluster": CLUSTER_SPEC,
    "RayJob": fields(
        "entrypoint",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        rayClusterSpec=CLUSTER_SPEC,
    ),
    "RayService": fields(
        "serveConfigV2 rayClusterConfig",
        serveConfigV2=TEXT,
        upgradeStrategy=fields(type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}),
        rayClusterConfig=CLUSTER_SPEC,
    ),
}


def schema_of(kind: str) -> Schema:
    """Returns the schema of a resource."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"}),
        spec=SPECS[kind],
    )
