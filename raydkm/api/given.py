"""What a user gives as an array, a file or a model: initial prototypes and target marginals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydkm.config import FitConfig
from raydkm.data.source import numpy_of
from raydkm.errors import ConfigError
from raydkm.model import Model, load
from raydkm.ops.seeding import SEEDINGS


def files_named(options: dict[str, Any]) -> list[str]:
    """Paths among the options, which an output must not replace."""
    given = (options.get("init"), options.get("marginal"))
    return [os.fspath(path) for path in given if isinstance(path, str | os.PathLike) and os.path.exists(path)]


def read_given(options: dict[str, Any]) -> tuple[NDArray[np.float64] | None, dict[str, Any]]:
    """Initial prototypes (K, d) if any are given, and the options as `raydkm.config` knows them.

    Of prototypes the word "array" is left in ``options["init"]``, of a marginal its numbers.

    Raises
    ------
    ConfigError, ModelError
        Where a file cannot be read.
    """
    options = dict(options)
    if isinstance(options.get("marginal"), str | os.PathLike):
        options["marginal"] = _numbers(options["marginal"])
    init = options.get("init")
    if init is None or (isinstance(init, str) and (init in SEEDINGS or not is_place(init))):
        return None, options
    options["init"] = "array"
    if isinstance(init, str | os.PathLike) and not os.fspath(init).endswith(".npy"):
        init = load(init)
    if isinstance(init, Model):
        metric = options.get("metric", FitConfig.model_fields["metric"].default)
        if init.config.metric != metric:
            raise ConfigError(f"init: a model of metric {init.config.metric}; this fit has metric {metric}")
        return init.cluster_centers, options
    try:
        loaded = np.load(init, allow_pickle=False) if isinstance(init, str | os.PathLike) else init
        return np.array(numpy_of(loaded), dtype=np.float64), options
    except (EOFError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"init: not an array of numbers ({error})") from None


def is_place(init: str) -> bool:
    """Whether `init` is the path of an array or a model, rather than the name of a seeding."""
    return init.endswith(".npy") or os.sep in init or os.path.isdir(init)


def _numbers(path: str | os.PathLike) -> list[float]:
    """The numbers in a file: .npy, .json, or text with one a line (or separated by spaces or commas)."""
    try:
        if os.fspath(path).endswith(".npy"):
            return np.load(path, allow_pickle=False).astype(float).tolist()
        text = Path(path).read_text()
        return json.loads(text) if text.lstrip().startswith("[") else [float(x) for x in text.replace(",", " ").split()]
    except (AttributeError, EOFError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"marginal: {path}: not a file of numbers ({error})") from None
