"""What all configurations share: how they are validated, and what is said of a value that is not."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from raydkm.errors import ConfigError


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Config = TypeVar("_Config", bound=Frozen)


def build(model: type[_Config], values: dict[str, Any]) -> _Config:
    """Validate `values` as a configuration; raise `ConfigError` on an unknown or impossible one."""
    for name in values:
        known(name, [*model.model_fields])
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(e) for e in error.errors())) from None


def known(name: str, names: list[str]) -> None:
    if name not in names:
        hint = get_close_matches(name, names, n=1)
        raise ConfigError(f"unknown configuration key '{name}'" + (f"; did you mean '{hint[0]}'?" if hint else ""))


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    what = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where}: {what} (got {error['input']!r})" if where else what


def number(text: Any) -> float | None:
    """A finite number that a text says, else None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
