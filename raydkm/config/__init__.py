"""Every parameter of a fit, declared, documented and validated once.

The CLI's options, the YAML keys, the keyword arguments of :func:`raydkm.fit` and ``model.json`` all
derive from the models here: `FitConfig` holds what determines the clusters of given features, `FeatureConfig` what
the features are and how they are learned, `FitRunConfig` what only determines where and how fast all of it is computed,
`AssignConfig` what an assignment needs besides.
"""

from raydkm.config.base import build
from raydkm.config.features import AS_THEY_ARE, FeatureConfig, arguments_of
from raydkm.config.fit import FitConfig, Problem
from raydkm.config.plan import PlanConfig
from raydkm.config.read import configure, read_yaml
from raydkm.config.run import AssignConfig, FitRunConfig, RunConfig

__all__ = [
    "AS_THEY_ARE",
    "AssignConfig",
    "FeatureConfig",
    "FitConfig",
    "FitRunConfig",
    "PlanConfig",
    "Problem",
    "RunConfig",
    "arguments_of",
    "build",
    "configure",
    "read_yaml",
]
