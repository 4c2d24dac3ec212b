"""Predictions in other processes and threads of a process that has predicted."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import multiprocessing, os, threading
from concurrent.futures import ThreadPoolExecutor
import joblib, numpy as np, torch, raydkm

torch.set_num_threads(2)
rows = np.random.default_rng(0).standard_normal((4096, 16)).astype(np.float32)  # enough for torch to use both

def fitted():
    return raydkm.DKMeans(8, objective="kmeans", init="random", n_init=1, max_steps=2, random_state=0).fit(rows)

model = fitted()
expected = model.predict(rows)

def same(_=None):
    return bool((model.predict(rows) == expected).all() and (fitted().predict(rows) == expected).all())
"""

FORKS = """
def by_pool():
    model.predict(rows)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(same, range(2)) == [True] * 2

by_pool()
thread = threading.Thread(target=by_pool)
thread.start()
thread.join()
if os.fork() == 0:
    first = same()
    if os.fork() == 0:
        os._exit(0 if same() else 1)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]) or not first)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""

WORKERS = """
with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(same, range(2))) == [True] * 2
for backend in ("multiprocessing", "loky", "threading"):
    assert joblib.Parallel(2, backend=backend)(joblib.delayed(same)() for _ in range(2)) == [True] * 2
"""


@pytest.mark.parametrize("code", [FORKS, WORKERS], ids=["forks", "threads and joblib"])
def test_a_prediction_after_a_prediction(code: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", f"{BEGIN}\n{code}\nprint(same())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.split() == ["True"], done.stderr
