"""The files of ``deploy/`` and ``ray_cluster.yaml`` against the schemas of those that read them."""

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from kuberay_schema import RAY_JOB
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.check_image import DOCKERFILE, copy_context, lint, run_steps, steps, unknown_extras

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CLUSTERS = [ROOT / "ray_cluster.yaml", DEPLOY / "ray_cluster_local.yaml"]
KUBERNETES = "1.34"


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((DEPLOY / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield f"{file.name}:{document['kind']}/{document['metadata']['name']}", document


def ray_job() -> dict[str, Any]:
    return next(document for _, document in documents() if document["kind"] == "RayJob")


def pods_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of head and workers, each as a pod."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}}
    return [named | {"spec": group["template"]["spec"]} for group in groups]


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.name)
def test_cluster_files_pass_rays_own_validation(file: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(file.read_text())))


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.name)
def test_rays_validation_is_one_that_can_fail(file: Path) -> None:
    broken = yaml.safe_load(file.read_text()) | {"surprise": 1}
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        validate_config(prepare_config(broken))


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.name)
def test_every_ray_start_asks_for_a_token_and_no_dashboard_is_open(file: Path) -> None:
    cluster = yaml.safe_load(file.read_text())
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start.split("ray start")[0]
        assert "--dashboard-host=127.0.0.1" in start or "--head" not in start
    assert any(place.endswith(".ray/auth_token") for place in cluster["file_mounts"])


def test_the_aws_head_runs_no_trial_and_is_no_spot_instance() -> None:
    cluster = yaml.safe_load(CLUSTERS[0].read_text())
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["atdiff_driver"] > 0
    assert "InstanceMarketOptions" not in head["node_config"]
    workers = [each for name, each in types.items() if name != cluster["head_node_type"]]
    assert all(each["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for each in workers)
    assert cluster["max_workers"] >= max(each["max_workers"] for each in workers)


@pytest.mark.parametrize(
    "document", [pytest.param(each, id=name) for name, each in documents() if each["kind"] != "RayJob"]
)
def test_manifests_pass_kubernetes_own_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_ray_job_and_its_pods_pass_their_schemas() -> None:
    jsonschema.validate(ray_job(), RAY_JOB)
    for pod in pods_of(ray_job()):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("spec", "backoffLimits"), 5),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs"), {"groupName": "gpu"}),
    ],
)
def test_a_wrong_ray_job_is_refused(place: tuple[str, ...], value: object) -> None:
    broken = copy.deepcopy(ray_job())
    inner = broken
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, RAY_JOB)


def test_a_wrong_pod_is_refused() -> None:
    pod = pods_of(copy.deepcopy(ray_job()))[0]
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_ray_job_asks_for_a_token_restarts_and_keeps_trials_off_the_head() -> None:
    spec = ray_job()["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert spec["backoffLimit"] > 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "atdiff-redis:6379"


def test_what_manifests_refer_to_is_declared_by_another() -> None:
    known = {(document["kind"], document["metadata"]["name"]) for _, document in documents()}
    text = "\n".join(file.read_text() for file in (DEPLOY / "kuberay").glob("*.yaml"))
    for claim in re.findall(r"claimName: ([\w-]+)", text):
        assert ("PersistentVolumeClaim", claim) in known
    for host in re.findall(r"(atdiff-[a-z]+):\d+", text):
        assert ("Service", host) in known
    secrets = set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", text)) | set(re.findall(r"secretName: ([\w-]+)", text))
    assert secrets == set(re.findall(r"kubectl create secret generic ([\w-]+)", text))


def test_every_file_names_the_version_of_ray_that_we_install() -> None:
    version = re.escape(ray.__version__)
    (base,) = [step.arguments for step in steps() if step.keyword == "FROM"]
    assert re.search(rf":{version}-", base)
    assert re.fullmatch(version, ray_job()["spec"]["rayClusterSpec"]["rayVersion"])


def test_the_dockerfile_is_lint_free_and_names_extras_that_exist(tmp_path: Path) -> None:
    assert lint() == ""
    assert unknown_extras() == set()
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text().replace("--no-install-recommends ", ""))
    assert "DL3015" in lint(broken)


@pytest.mark.slow
def test_the_steps_of_the_image_install_a_command_that_answers(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    copy_context(context)
    done = dict(run_steps(context, tmp_path / "installed"))
    assert done["atdiff --help"] == "run"
    assert (tmp_path / "installed" / "pipeline" / "cli.py").is_file()


def test_the_service_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "atdiff-mlflow.service"
    text = (DEPLOY / "systemd" / unit.name).read_text()
    unit.write_text(text.replace("/srv/atdiff/venv/bin/atdiff", "/bin/true"))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert done.returncode == 0, done.stderr
    assert complaints == []
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=sometimes"))
    again = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "kill mode" in again.stderr.lower()


def test_the_units_settings_are_those_of_its_example() -> None:
    unit = (DEPLOY / "systemd" / "atdiff-mlflow.service").read_text()
    example = (DEPLOY / "systemd" / "mlflow.env.example").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", unit)) == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
