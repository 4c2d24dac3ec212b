"""serve.yaml is valid without a cluster at hand."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from raydkm.serve.settings import ServeConfig

ROOT = Path(__file__).parents[3]


def test_serve_yaml_follows_the_schema_of_serve_and_names_what_there_is() -> None:
    text = (ROOT / "serve.yaml").read_text()
    assert "serve run serve.yaml" in text.splitlines()[0]
    config = ServeDeploySchema(**yaml.safe_load(text))
    assert config.http_options.host == "127.0.0.1"
    [application] = config.applications
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(import_module(module), builder))
    assert set(application.args) <= set(ServeConfig.model_fields)  # the model is named once, below
    [deployment] = application.deployments
    assert set(deployment.user_config) == {"model"}
