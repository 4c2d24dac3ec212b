"""What users launch with is valid without a cloud at hand: cluster.yaml and the job scripts."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]


def test_cluster_yaml_follows_the_schema_that_ray_ships() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    [location] = spec.submodule_search_locations or []
    schema = json.loads((Path(location) / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert any("--dashboard-host=127.0.0.1" in command for command in starts)


@pytest.mark.parametrize("name", ["fit", "assign"])
def test_a_job_opens_with_its_launch_command_and_stays_small(name: str) -> None:
    text = (ROOT / "jobs" / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert "ray job submit" in docstring
    assert f"jobs/{name}.py" in docstring
    assert len(text.splitlines()) <= 60
