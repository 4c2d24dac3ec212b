"""The best prototypes of each row through FAISS, at inference: the one module that imports faiss."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from raydkm.errors import ConfigError
from raydkm.ops.scores import Scores


class NearestPrototypes:
    """An index of the prototypes in which score_ik = [z_i, 1] . [theta_k, b_k] is an inner product.

    With equal scalings the largest inner product is the nearest prototype; with balance, the best after scaling.

    Parameters
    ----------
    scores : Scores
        On the CPU.
    threads : int
        Of each search.
    """

    def __init__(self, scores: Scores, threads: int):
        if importlib.util.find_spec("faiss") is None:
            raise ConfigError("assignment needs FAISS: install raydkm[cpu] or raydkm[gpu]")
        import faiss

        self._faiss = faiss
        self._threads = threads
        self._index = faiss.IndexFlatIP(scores.prototypes.shape[1] + 1)
        self._index.add(torch.cat((scores.prototypes, scores.bias[:, None]), dim=1).numpy())

    def __call__(self, z: Tensor, count: int) -> Tensor:
        """Numbers (n, count) int64 of the prototypes with the highest scores, best first, of z (n, d) float32."""
        before = torch.get_num_threads()
        self._faiss.omp_set_num_threads(self._threads)
        try:
            _, found = self._index.search(torch.nn.functional.pad(z, (0, 1), value=1.0).numpy(), count)
        finally:
            torch.set_num_threads(before)  # FAISS and torch may share one OpenMP runtime
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.int64))
