from __future__ import annotations

import numpy as np
import pytest
import torch

from raydkm.errors import ConfigError
from raydkm.ops import nearest as nearest_module
from raydkm.ops.nearest import FLAT, NearestPrototypes
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


def test_the_index_is_on_the_cpu_also_where_faiss_has_gpus(rng, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = nearest_module._faiss()
    for name in ("StandardGpuResources", "index_cpu_to_gpu"):
        monkeypatch.setattr(faiss, name, None, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    assert index_of(rng.standard_normal((4, 3)), np.zeros(4), 0.0)(torch.zeros(10, 3), 1).shape == (10, 1)


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


# The choice of an index


KINDS = ("flat", "ivf", "hnsw")


@pytest.fixture(scope="module")
def crowd() -> tuple[Scores, torch.Tensor]:
    """Prototypes in groups, with balance, and rows beside them."""
    rng = np.random.default_rng(0)
    prototypes = 4 * rng.standard_normal((40, 6))[rng.integers(40, size=2000)] + rng.standard_normal((2000, 6))
    z = prototypes[rng.integers(2000, size=3000)] + 0.5 * rng.standard_normal((3000, 6))
    log_s = torch.from_numpy(0.1 * rng.standard_normal(2000))
    return Scores.of(torch.from_numpy(prototypes), log_s, 1.0, torch.float32, torch.device("cpu")), as_rows(z)


def as_rows(z: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(z).float()


@pytest.mark.parametrize("index", KINDS)
@pytest.mark.parametrize("recall", [0.9, 0.999])
def test_an_index_finds_what_its_recall_says(crowd, index: str, recall: float) -> None:
    scores, z = crowd
    nearest = NearestPrototypes(scores, 2, index=index, recall=recall, sample=z[:1000])
    assert nearest.choice.index == index
    assert nearest.choice.recall >= recall
    best = scores(z).argmax(1)
    assert float((nearest(z, 1)[:, 0] == best).double().mean()) >= recall - 0.01


@pytest.mark.parametrize("index", KINDS)
def test_candidates_of_every_index_come_best_first_by_their_exact_scores(crowd, index: str) -> None:
    scores, z = crowd
    found = NearestPrototypes(scores, 1, index=index, sample=z)(z[:300], 7)
    values = scores(z[:300]).gather(1, found)
    assert bool((values[:, 1:] <= values[:, :-1] + 1e-4).all())
    assert all(len(set(row)) == 7 for row in found.tolist())
    assert float((found == scores(z[:300]).topk(7).indices).double().mean()) > 0.98


def test_rows_whose_lists_hold_too_few_prototypes_look_at_all(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, z = crowd
    monkeypatch.setattr(nearest_module, "IVF_EFFORTS", (1,))
    found = NearestPrototypes(scores, 1, index="ivf", recall=0.1, sample=z)(z[:50], 400)
    assert torch.equal(found.sort(1).values, scores(z[:50]).topk(400).indices.sort(1).values)


def test_auto_takes_the_cheapest_that_reaches_the_recall(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, z = crowd
    assert NearestPrototypes(scores, 1, sample=z).choice == FLAT  # few
    monkeypatch.setattr(nearest_module, "FEW_FOR_AN_INDEX", 0)
    nearest = NearestPrototypes(scores, 1, recall=0.9, sample=z)
    assert {choice.index for choice in nearest.measured} == {"ivf", "hnsw"}
    assert nearest.choice.cost == min(choice.cost for choice in nearest.measured) < 1
    monkeypatch.setattr(nearest_module, "COST", {"ivf": 1e9, "hnsw": 1e9})
    assert NearestPrototypes(scores, 1, recall=0.9, sample=z).choice == FLAT


@pytest.mark.parametrize("index", ["auto", "ivf"])
def test_where_no_effort_reaches_the_recall_the_index_is_flat(crowd, index: str, monkeypatch) -> None:
    scores, z = crowd
    monkeypatch.setattr(nearest_module, "FEW_FOR_AN_INDEX", 0)
    monkeypatch.setattr(nearest_module, "IVF_EFFORTS", (1,))
    monkeypatch.setattr(nearest_module, "HNSW_EFFORTS", (1,))
    nearest = NearestPrototypes(scores, 1, index=index, recall=1.0, sample=z)
    assert nearest.choice == FLAT
    assert all(choice.recall < 1 for choice in nearest.measured)


def test_without_rows_recall_is_measured_between_prototypes_and_choices_repeat(crowd) -> None:
    scores, z = crowd
    choices = [NearestPrototypes(scores, threads, index="ivf", recall=0.95) for threads in (1, 2)]
    assert choices[0].choice == choices[1].choice
    assert torch.equal(choices[0](z, 3), choices[1](z, 3))


@pytest.mark.parametrize(("index", "recall"), [("tree", 0.9), ("ivf", 0.0), ("ivf", 1.5)])
def test_an_index_or_a_recall_that_there_is_not_is_refused(crowd, index: str, recall: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        NearestPrototypes(crowd[0], 1, index=index, recall=recall)
