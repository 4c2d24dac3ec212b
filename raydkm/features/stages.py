"""Stages of a map as they are written: ``center,pca:64,rff:512``. Imports no torch, for the command line reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raydkm.errors import ConfigError

#: Whether a number goes with a stage: "never", "always", or "maybe".
STAGES = {
    "center": "never",
    "standardize": "never",
    "unit": "never",
    "whiten": "never",
    "pca": "always",
    "rff": "always",
    "nystrom": "always",
    "lda": "maybe",
    "neighbours": "always",
}


@dataclass(frozen=True)
class Stage:
    """One stage of a map.

    Parameters
    ----------
    name : str
        A key of `STAGES`.
    number : int or None
        Dimensions of what it gives, or hops of ``neighbours``; None where the stage knows itself.
    """

    name: str
    number: int | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number}"


def parse(text: str) -> tuple[Stage, ...]:
    """Read stages that are separated by commas.

    Raises
    ------
    ConfigError
        If a name is unknown, a number is missing, superfluous or not positive, or ``neighbours`` is not the last stage.
    """
    stages = tuple(_parse_one(part.strip()) for part in text.split(","))
    if any(stage.name == "neighbours" for stage in stages[:-1]):
        raise ConfigError(
            f"map {text}: neighbours can only be the last stage; it averages features, it maps no new row"
        )
    return stages


def _parse_one(text: str) -> Stage:
    name, colon, number = text.partition(":")
    if name not in STAGES:
        raise ConfigError(f"map stage {name!r}: must be one of {', '.join(STAGES)}")
    takes, what = STAGES[name], "hops" if name == "neighbours" else "dimensions"
    if not colon:
        if takes == "always":
            raise ConfigError(f"map stage {name}: say how many {what}, as {name}:{1 if name == 'neighbours' else 64}")
        return Stage(name)
    if takes == "never":
        raise ConfigError(f"map stage {text}: {name} takes no number")
    if not re.fullmatch(r"0*[1-9][0-9]*", number):
        raise ConfigError(f"map stage {text}: {number!r} is no positive number of {what}")
    return Stage(name, int(number))


def dims_of(stages: Sequence[Stage], dim: int, clusters: int) -> tuple[int, ...]:
    """Dimensions of what each stage gives, of rows of `dim` dimensions.

    ``lda`` has one less than there are clusters, for the means of K clusters span no more, unless there are fewer.

    Raises
    ------
    ConfigError
        If a stage is to give more dimensions than there are.
    """
    dims: list[int] = []
    for stage in stages:
        before = dims[-1] if dims else dim
        if stage.name == "pca" and stage.number is not None and stage.number > before:
            raise ConfigError(f"map stage {stage}: there are only {before} dimensions; ask for at most {before}")
        if stage.name == "lda":
            if clusters < 2:
                raise ConfigError(f"map stage {stage}: needs at least 2 clusters to tell apart")
            most = min(clusters - 1, before)
            if stage.number is not None and stage.number > most:
                raise ConfigError(
                    f"map stage {stage}: {clusters} clusters in {before} dimensions have at most {most} discriminant "
                    f"directions; ask for at most {most}"
                )
            dims.append(stage.number or most)
        else:
            dims.append(before if stage.number is None or stage.name == "neighbours" else stage.number)
    return tuple(dims)
