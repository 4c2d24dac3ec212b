"""From options and files to configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydkm.config.base import Frozen, build, known
from raydkm.config.features import FeatureConfig
from raydkm.config.fit import FitConfig
from raydkm.config.run import FitRunConfig
from raydkm.errors import ConfigError

_MODELS: tuple[type[Frozen], ...] = (FitConfig, FeatureConfig, FitRunConfig)

#: Arguments of a fit that are no part of its configuration.
_ARGUMENTS = ("data", "out", "overwrite", "callbacks", "sample_weight", "config", "json")


def configure(options: dict[str, Any]) -> tuple[FitConfig, FeatureConfig, FitRunConfig]:
    """Sort `options` into the three configurations; raise `ConfigError` on an unknown or impossible one."""
    for name in options:
        known(name, [name for model in _MODELS for name in model.model_fields])
    found = [build(model, {k: v for k, v in options.items() if k in model.model_fields}) for model in _MODELS]
    return tuple(found)  # type: ignore[return-value]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read configuration keys from a YAML file: one flat mapping with the names of the CLI's options."""
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of configuration keys, found {type(loaded).__name__}")
    options = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    if given := [name for name in _ARGUMENTS if name in options]:
        raise ConfigError(
            f"{path}: {', '.join(given)}: no configuration key; give it on the command line or in the call"
        )
    return options
