"""raydkm: soft, regularised, balanced k-means for billions of vectors.

`DKMeans` is the estimator; `fit`, `assign`, `evaluate` and `load` are what the CLI and the jobs call. Ray is
imported only when something runs on it.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DKMeans": "raydkm.estimator",
    "Model": "raydkm.model",
    "assign": "raydkm.api.assign",
    "evaluate": "raydkm.api.evaluate",
    "fit": "raydkm.api.fit",
    "load": "raydkm.model",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raydkm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
