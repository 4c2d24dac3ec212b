"""The ADM loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from raydkm.engine.passes import Passes
from raydkm.objectives import Objective, State, Terms

#: Called after every step with the new state, the step's terms and its seconds: of all of it, and of its parts.
Watch = Callable[[State, Terms, dict[str, float]], None]


def adm(objective: Objective, state: State, passes: Passes, max_steps: int, watch: Watch | None = None) -> State:
    """Alternate targets (E-step, over all rows) and model (update) until settled, or for `max_steps` steps."""
    while state.step < max_steps:
        began = time.perf_counter()
        statistics = passes.sum(objective.fields, objective.e_step(state))
        state, terms = objective.update(state, statistics)
        if watch is not None:
            watch(state, terms, {"seconds": time.perf_counter() - began, **asdict(passes.timing)})
        if terms.settled:
            break
    return state
