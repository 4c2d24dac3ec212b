"""The model that a fit has found."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from raydkm.config import FeatureConfig, FitConfig
from raydkm.engine.fit import Fitted
from raydkm.model import Model
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.logistic import LogisticObjective


def model_of(fitted: Fitted, config: FitConfig, made: FeatureConfig) -> Model:
    """What a fit of `config` to features `made` of the rows has found, as an artefact."""
    state = fitted.state
    logistic = issubclass(OBJECTIVES[config.objective], LogisticObjective)
    own = (state.prototypes, state.bias) if logistic else (None, None)
    weights, bias = own if fitted.head is None else fitted.head
    return Model(
        config=config,
        temperature=fitted.temperature,
        prototypes=fitted.means if logistic else state.prototypes,
        weights=weights,
        bias=bias,
        shift=fitted.shift,
        log_s=state.log_s,
        counts=fitted.counts,
        shares=state.shares,
        record={
            **fitted.facts,
            "inertia": fitted.inertia,
            "steps": state.step,
            "stopped": fitted.stopped,
            "collapse_temperature": fitted.collapse_temperature,
            "seconds": {name: round(value, 4) for name, value in fitted.seconds.items()},
            **origin(),
        },
        history=fitted.history,
        made=made,
        features=fitted.features,
    )


def origin() -> dict[str, Any]:
    """When, and with which versions, a model is made."""
    packages = ("raydkm", "torch", "numpy", "pyarrow", "ray")
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
