"""Compile the loops that fits and assignments need, into NUMBA_CACHE_DIR: python deploy/precompile.py.

They are compiled for the processor that this runs on; another kind compiles its own when they are needed.
"""

from __future__ import annotations

import numpy as np

import raydkm

rows = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
for objective in ("kmeans", "sr-kmeans", "mi"):
    raydkm.DKMeans(8, objective=objective, max_steps=3).fit(rows).predict_proba(rows)
