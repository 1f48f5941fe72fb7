"""JSON schema of a KubeRay ``RayJob``, written from the field reference of KubeRay 1.6 (ray.io/v1).

It covers the fields of RayJob, RayCluster, its groups, ``autoscalerOptions``, ``authOptions`` and
``gcsFaultToleranceOptions`` by name, type and permitted value, and refuses any other. Pod templates
are left open here: they are checked against Kubernetes' own schema. Not covered: what an
admission webhook or the operator itself refuses (say a negative replica count in a suspended group).
"""

from typing import Any

STRING, BOOLEAN, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD_TEMPLATE = {"type": "object", "required": ["spec"]}


def _fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_SECRET = _fields(("secretKeyRef",), secretKeyRef=_fields(("name", "key"), name=STRING, key=STRING, optional=BOOLEAN))
_CREDENTIAL = _fields(value=STRING, valueFrom=_SECRET)
_GROUP = {"rayStartParams": STRINGS, "template": POD_TEMPLATE, "resources": STRINGS, "labels": STRINGS}

RAY_CLUSTER_SPEC = _fields(
    ("headGroupSpec",),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    suspend=BOOLEAN,
    managedBy=STRING,
    enableInTreeAutoscaling=BOOLEAN,
    headServiceAnnotations=STRINGS,
    authOptions=_fields(("mode",), mode={"enum": ["disabled", "token"]}, secretName=STRING, enableK8sTokenAuth=BOOLEAN),
    gcsFaultToleranceOptions=_fields(
        ("redisAddress",),
        redisAddress=STRING,
        redisUsername=_CREDENTIAL,
        redisPassword=_CREDENTIAL,
        externalStorageNamespace=STRING,
    ),
    autoscalerOptions=_fields(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        image=STRING,
        imagePullPolicy={"enum": ["Always", "Never", "IfNotPresent"]},
        resources={"type": "object"},
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
        securityContext={"type": "object"},
    ),
    headGroupSpec=_fields(
        ("template",),
        **_GROUP,
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
        enableIngress=BOOLEAN,
        headService={"type": "object"},
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _fields(
            ("groupName", "template", "minReplicas", "maxReplicas"),
            **_GROUP,
            groupName=STRING,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts={"type": "integer", "minimum": 1},
            idleTimeoutSeconds=COUNT,
            suspend=BOOLEAN,
            scaleStrategy={"type": "object"},
        ),
    },
)

RAY_JOB = _fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_fields(("name",), name={"type": "string", "maxLength": 47}, namespace=STRING, labels=STRINGS),
    spec=_fields(
        ("entrypoint",),
        entrypoint=STRING,
        rayClusterSpec=RAY_CLUSTER_SPEC,
        clusterSelector=STRINGS,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=POD_TEMPLATE,
        submitterConfig=_fields(backoffLimit=COUNT),
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=COUNT,
        runtimeEnvYAML=STRING,
        metadata=STRINGS,
        jobId=STRING,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=STRING,
        deletionStrategy={"type": "object"},
        suspend=BOOLEAN,
        managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    ),
)
