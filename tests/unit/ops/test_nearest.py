from __future__ import annotations

import numpy as np
import pytest
import torch

from raydkm.ops.nearest import NearestPrototypes
from raydkm.ops.scores import Scores


def index_of(prototypes: np.ndarray, log_s: np.ndarray, temperature: float) -> NearestPrototypes:
    tensors = torch.from_numpy(prototypes), torch.from_numpy(log_s)
    return NearestPrototypes(Scores.of(*tensors, temperature, torch.float32, torch.device("cpu")), threads=2)


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_best_prototypes_come_best_first(count: int, temperature: float, rng: np.random.Generator) -> None:
    z, prototypes, log_s = rng.standard_normal((200, 5)), rng.standard_normal((20, 5)), rng.standard_normal(20)
    found = index_of(prototypes, log_s, temperature)(torch.from_numpy(z).float(), count).numpy()
    prices = np.square(z[:, None] - prototypes).sum(2) - temperature * log_s
    assert found.shape == (200, count)
    assert all(len(set(row)) == count for row in found.tolist())
    np.testing.assert_allclose(np.take_along_axis(prices, found, 1), np.sort(prices, axis=1)[:, :count], atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_leaves_torch_its_number_of_threads(threads: int, rng: np.random.Generator) -> None:
    index = index_of(rng.standard_normal((4, 3)), np.zeros(4), 0.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        index(torch.zeros(10, 3), 1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
