"""Progress that a person can read: a log line a step, at most one a second, and the one that settles."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger("raydkm")


class StepLog:
    """Logs history entries with the objective and its change."""

    def __init__(self) -> None:
        self._last_time = 0.0
        self._last_objective: float | None = None

    def __call__(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        if entry["settled"] or now - self._last_time >= 1.0:
            change = "" if self._last_objective is None else f" ({entry['objective'] - self._last_objective:+.3g})"
            logger.info(
                "step %d: objective %.6g%s, shift %.3g, clusters %.6g to %.6g rows, %.3g s%s",
                entry["step"],
                entry["objective"],
                change,
                entry["shift"],
                entry["smallest"],
                entry["largest"],
                entry["seconds"],
                ", settled" if entry["settled"] else "",
            )
            self._last_time, self._last_objective = now, entry["objective"]
