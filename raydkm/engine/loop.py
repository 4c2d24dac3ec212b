"""The ADM loop, and the sweeps after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from raydkm.engine.farthest import placed_at_farthest
from raydkm.engine.passes import SUMS_BYTES, Passes, size_of_sums
from raydkm.objectives import Objective, State, Terms
from raydkm.objectives.base import BALANCE_TOLERANCE
from raydkm.ops.last import LastPass

#: Labels of rows that a worker keeps, of 4 bytes each.
MOST_LABELS = 2**26

#: Called after every step with the new state, the step's terms and its seconds: of all of it, and of its parts. Says
#: whether to stop.
Watch = Callable[[State, Terms, dict[str, float]], bool]


def adm(objective: Objective, state: State, passes: Passes, max_steps: int, watch: Watch) -> State:
    """Alternate targets (E-step, over all rows) and model (update) until settled, or for `max_steps` steps."""
    last = LastPass() if _remembers(objective, state, passes) else None
    while state.step < max_steps:
        began = time.perf_counter()
        statistics, before = passes.sum(objective.fields(state), objective.e_step(state, last), last), state
        timing, counts = passes.timing, statistics["counts"].cpu()
        state, terms = objective.update(before, statistics, passes.sum, last)
        lost = objective.lost(before.shares, counts)
        del statistics, before  # the next step needs the room
        state, moved = placed_at_farthest(objective, state, lost, passes)
        if moved:
            terms = replace(terms, relocated=terms.relocated + moved, settled=None)
        seconds = {"seconds": time.perf_counter() - began, **asdict(timing)}
        if watch(state, terms, seconds) or terms.settled:
            break
    return state


def _remembers(objective: Objective, state: State, passes: Passes) -> bool:
    """Whether labels and sums are kept from step to step in this worker: it changes no bit of any."""
    rows, size = passes.source.total // passes.comm.world_size, size_of_sums(objective.fields(state))
    return objective.remembers and passes.source.repeats and has_room(rows, size)


def has_room(rows: int, sums: int) -> bool:
    """Whether a worker of so many rows, and sums of so many bytes, may keep labels and sums from step to step."""
    return rows <= MOST_LABELS and sums <= SUMS_BYTES


def hold_shares(objective: Objective, state: State, passes: Passes, most: int) -> tuple[State, float]:
    """Sweep the scalings alone, with the model as it is, until the clusters' shares are held, or for `most` passes.

    Returns
    -------
    State, float
        The state nearest to that, with the shares under its scalings, and the change of a log s_k that a further sweep
        would make.
    """
    best, least = state, math.inf
    for _ in range(most):
        statistics = passes.sum(objective.fields(state), objective.e_step(state))
        swept, residual = objective.sweep(state, statistics)
        if residual < least:
            counts = statistics["counts"].cpu()
            best, least = replace(state, shares=counts / counts.sum()), residual
        if residual <= BALANCE_TOLERANCE:
            break
        state = swept
    return best, least
