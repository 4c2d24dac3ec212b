"""Predictions in other processes and threads of a process that has predicted."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import numpy as np, torch, raydkm

torch.set_num_threads(2)
rows = np.random.default_rng(0).standard_normal((20_000, 16)).astype(np.float32)
model = raydkm.DKMeans(8, objective="kmeans", max_steps=3, random_state=0).fit(rows)
expected = model.predict(rows)

def same(_=None):
    again = raydkm.DKMeans(8, objective="kmeans", max_steps=3, random_state=0).fit(rows)
    return bool((model.predict(rows) == expected).all() and (again.predict(rows) == expected).all())
"""

WAYS = {
    "fork": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(same, range(3))
""",
    "fork from another thread": """
import multiprocessing, threading
found = []
def run():
    model.predict(rows)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found.extend(pool.map(same, range(3)))
thread = threading.Thread(target=run)
thread.start()
thread.join()
""",
    "fork of a fork": """
import os
if os.fork() == 0:
    same()
    if os.fork() == 0:
        os._exit(0 if same() else 1)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
found = [os.waitstatus_to_exitcode(os.wait()[1]) == 0] * 3
""",
    "threads": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(3) as pool:
    found = list(pool.map(same, range(3)))
""",
    "joblib, multiprocessing": """
import joblib
found = joblib.Parallel(2, backend="multiprocessing")(joblib.delayed(same)() for _ in range(3))
""",
    "joblib, loky": """
import joblib
found = joblib.Parallel(2, backend="loky")(joblib.delayed(same)() for _ in range(3))
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_prediction_after_a_prediction(way: str) -> None:
    code = f"{BEGIN}\n{WAYS[way]}\nassert found == [True] * 3, found\nprint(same())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["True"], done.stderr
