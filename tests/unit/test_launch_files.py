"""What users launch with is valid without a cloud at hand: YAML files, the Dockerfile and the job scripts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from raydkm.cli import app
from raydkm.serve.settings import ServeConfig

ROOT = Path(__file__).parents[2]
CLUSTERS = ("cluster.yaml", "deploy/onprem.yaml")
KUBERAY = {"deploy/kuberay/rayjob.yaml": "RayJob", "deploy/kuberay/rayservice.yaml": "RayService"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def check_command(line: str) -> None:
    """Parse a command line of raydkm as the CLI would; a wrong name or option raises."""
    program, command, *arguments = shlex.split(line)
    assert program == "raydkm"
    typer.main.get_command(app).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]


def launches(name: str) -> list[str]:
    """The commands of a file's opening comment."""
    first = (ROOT / name).read_text().split("\n#\n")[0]
    return [part.strip() for line in first.splitlines() for part in line.removeprefix("# ").split("&&")]


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_files_follow_the_schema_that_ray_ships(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_have_tokens_and_their_dashboard_on_loopback(name: str) -> None:
    config = read(name)
    starts = [
        command
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    # the first of what runs after the files are copied
    assert prepare_config(config)["head_setup_commands"][0] == "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_install_into_a_virtual_environment_that_ray_is_started_from(name: str) -> None:
    config = prepare_config(read(name))
    installs = [command for command in config["head_setup_commands"] if "pip install" in command]
    assert installs
    for command in installs:
        assert "~/raydkm-venv/bin/pip install -c ~/raydkm/constraints.txt" in command
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert "PATH=~/raydkm-venv/bin:$PATH " in command
        assert "ray start" not in command or command.startswith("ulimit -n 65536; ")


def test_the_head_on_aws_can_start_nodes_of_stated_images() -> None:
    config = prepare_config(read("cluster.yaml"))
    assert config["head_setup_commands"][-1].endswith(" boto3")
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["ImageId"]
    worker = config["available_node_types"]["worker"]
    assert f"--workers {worker['min_workers']} " in (ROOT / "cluster.yaml").read_text()


@pytest.mark.parametrize("name", [*CLUSTERS, *KUBERAY])
def test_every_yaml_opens_with_the_command_that_launches_it(name: str) -> None:
    commands = launches(name)
    assert any(name in command for command in commands)
    for command in commands:  # what an operator makes is waited for
        made = next((place for place in ("job/", "svc/") if place in command), None)
        if made is not None and "wait" not in command:
            before = commands[: commands.index(command)]
            assert any("kubectl wait --for=create" in one and made in one for one in before)
        if command.startswith("raydkm submit"):
            check_command(command)


def templates(name: str) -> Iterator[dict[str, Any]]:
    spec = read(name)["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def pods(name: str) -> Iterator[dict[str, Any]]:
    return (template["spec"] for template in templates(name))


def labels_of(name: str) -> set[str]:
    return {template["metadata"]["labels"]["app"] for template in templates(name)}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_are_what_the_operator_takes(name: str) -> None:
    config = read(name)
    assert (config["apiVersion"], config["kind"]) == ("ray.io/v1", KUBERAY[name])
    assert re.fullmatch(r"[a-z0-9-]+", config["metadata"]["name"])
    spec = config["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_bounded_unprivileged_and_of_one_pinned_image(name: str) -> None:
    images = set()
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            images.add(container["image"])
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) == volumes
            assert "/tmp" in mounts  # Ray writes there
            for variable in container.get("env", []):
                assert variable["name"] in ("TMPDIR", "RAYDKM_TOKENS_FILE"), "no secret lies in the environment"
                assert any(variable["value"].startswith(path) for path in mounts)
        assert pod["automountServiceAccountToken"] is False
    [image] = images
    assert re.fullmatch(r"raydkm@sha256:[0-9a-f]{64}", image)


def test_the_policies_are_of_the_pods_there_are() -> None:
    text = (ROOT / "deploy/kuberay/policies.yaml").read_text()
    assert text.startswith("# kubectl apply -f deploy/kuberay/policies.yaml\n")
    labels = {label for name in KUBERAY for label in labels_of(name)}
    kinds = []
    for policy in yaml.safe_load_all(text):
        kinds.append(policy["kind"])
        selector = policy["spec"].get("podSelector") or policy["spec"]["selector"]
        assert selector["matchLabels"]["app"] in labels
        for rule in policy["spec"].get("ingress", []):  # all ports for the pods among each other alone
            assert "ports" in rule or rule["from"] == [{"podSelector": selector}]
    assert kinds == ["NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget"]


def test_a_worker_of_the_service_is_ready_when_it_has_a_model() -> None:
    spec = read("deploy/kuberay/rayservice.yaml")["spec"]
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["httpGet"]
    assert probe["path"] == "/readyz"
    assert probe["port"] in {port["name"] for port in container["ports"]}


def test_the_rayjob_runs_a_command_that_there_is_and_that_resumes() -> None:
    spec = read("deploy/kuberay/rayjob.yaml")["spec"]
    check_command(spec["entrypoint"])
    assert "--run-dir" in spec["entrypoint"]
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert f"--workers {group['replicas']} " in spec["entrypoint"]
    pod = group["template"]["spec"]
    [container] = pod["containers"]
    assert {"name": "TMPDIR", "value": "/scratch"} in container["env"]  # rows go there that memory does not hold
    assert {"name": "scratch", "mountPath": "/scratch"} in container["volumeMounts"]
    [scratch] = [volume for volume in pod["volumes"] if volume["name"] == "scratch"]
    assert scratch["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]


def test_the_rayservice_serves_a_model_from_every_worker() -> None:
    spec = read("deploy/kuberay/rayservice.yaml")["spec"]
    served = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    [application] = served.applications
    assert application.import_path == "raydkm.serve.ray_serve:build"
    arguments = dict(application.args)
    assert arguments.pop("model").startswith("/data/")
    config = ServeConfig(**arguments)
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert config.replicas == group["minReplicas"] == group["maxReplicas"]
    assert config.threads == int(container["resources"]["limits"]["cpu"])  # so that no worker holds two


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's (instruction, arguments), comments left out and lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_is_pinned_and_runs_as_a_user() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert text.startswith("# docker build -f deploy/Dockerfile ")
    found = instructions(text)
    arguments = {rest.partition("=")[0] for name, rest in found if name == "ARG"}
    assert arguments == {"BASE", "ACCELERATOR", "TORCH_INDEX"}
    assert all(pinned(package) for package in ("faiss-cpu", "faiss-gpu-cu12"))  # of ACCELERATOR cpu and gpu
    stages = [rest for name, rest in found if name == "FROM"]
    assert len(stages) == 2
    assert all(re.fullmatch(r"\$\{BASE\}( AS \w+)?", stage) for stage in stages)
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?$", text, re.MULTILINE)
    assert "EXTRA_INDEX" not in text.upper().replace("-", "_")  # whoever has a name there would be installed
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
    installs = [rest for name, rest in found if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in rest for rest in installs)
    last_stage = found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]
    users = [rest for name, rest in last_stage if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


@pytest.mark.parametrize("name", ["fit", "assign"])
def test_a_job_opens_with_its_launch_command_and_stays_small(name: str) -> None:
    text = (ROOT / "jobs" / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert "ray job submit" in docstring
    assert f"python3 jobs/{name}.py" in docstring
    assert "--submission-id" in docstring
    assert len(text.splitlines()) <= 60
