from __future__ import annotations

import numpy as np
import pytest
import torch

from raydkm.errors import ConfigError
from raydkm.ops import nearest as nearest_module
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.nearest import FLAT, NearestPrototypes
from raydkm.ops.scores import Scores


def frame_of(prototypes: np.ndarray) -> Frame:
    return Frame.identity("euclidean", prototypes.shape[1])


def test_the_index_is_on_the_cpu_also_where_faiss_has_gpus(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, z = crowd
    faiss = nearest_module._faiss()
    for name in ("StandardGpuResources", "index_cpu_to_gpu"):
        monkeypatch.setattr(faiss, name, None, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    assert index_of(scores, z, index="ivf")(z[:10], 1).shape == (10, 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_search_leaves_torch_its_number_of_threads(threads: int, crowd) -> None:
    scores, z = crowd
    index = index_of(scores, z, index="ivf")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        index(z[:10], 1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_few_prototypes_need_no_faiss(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module.importlib.util, "find_spec", lambda name: None)
    assert NearestPrototypes(crowd[0], frame_of(crowd[0].prototypes)).choice == FLAT
    with pytest.raises(ConfigError, match="pass index flat"):
        NearestPrototypes(crowd[0], frame_of(crowd[0].prototypes), index="ivf")


# The choice of an index


KINDS = ("ivf", "hnsw")


@pytest.fixture(scope="module")
def crowd() -> tuple[Scores, torch.Tensor]:
    """Prototypes in groups, with balance, and rows beside them."""
    rng = np.random.default_rng(0)
    prototypes = 4 * rng.standard_normal((40, 6))[rng.integers(40, size=2000)] + rng.standard_normal((2000, 6))
    z = prototypes[rng.integers(2000, size=3000)] + 0.5 * rng.standard_normal((3000, 6))
    log_s = torch.from_numpy(0.1 * rng.standard_normal(2000))
    return Scores.of(torch.from_numpy(prototypes), log_s, 1.0, frame_of(prototypes)), torch.from_numpy(z).float()


def index_of(scores: Scores, z: torch.Tensor, **options) -> NearestPrototypes:
    return NearestPrototypes(scores, frame_of(scores.prototypes), sample=RowTile.at_origin(z), **options)


@pytest.mark.parametrize("index", KINDS)
@pytest.mark.parametrize("recall", [0.9, 0.999])
def test_an_index_finds_what_its_recall_says(crowd, index: str, recall: float) -> None:
    scores, z = crowd
    nearest = index_of(scores, z[:1000], threads=2, index=index, recall=recall)
    assert nearest.choice.index == index
    assert nearest.choice.recall >= recall
    assert float((nearest(z, 1)[:, 0] == scores.costs.labels(z)).double().mean()) >= recall - 0.01


def test_auto_takes_the_cheapest_that_reaches_the_recall(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, z = crowd
    assert index_of(scores, z).choice == FLAT  # few
    monkeypatch.setattr(nearest_module, "FEW_FOR_AN_INDEX", 0)
    nearest = index_of(scores, z, recall=0.9)
    assert {choice.index for choice in nearest.measured} == {"ivf", "hnsw"}
    assert nearest.choice.cost == min(choice.cost for choice in nearest.measured) < 1
    monkeypatch.setattr(nearest_module, "COST", {"ivf": 1e9, "hnsw": 1e9})
    assert index_of(scores, z, recall=0.9).choice == FLAT


@pytest.mark.parametrize("index", ["auto", "ivf"])
def test_where_no_effort_reaches_the_recall_all_are_compared(crowd, index: str, monkeypatch) -> None:
    scores, z = crowd
    monkeypatch.setattr(nearest_module, "FEW_FOR_AN_INDEX", 0)
    monkeypatch.setattr(nearest_module, "IVF_EFFORTS", (1,))
    monkeypatch.setattr(nearest_module, "HNSW_EFFORTS", (1,))
    nearest = index_of(scores, z, index=index, recall=1.0)
    assert nearest.choice == FLAT
    assert all(choice.recall < 1 for choice in nearest.measured)


def test_without_rows_recall_is_measured_between_prototypes_and_choices_repeat(crowd) -> None:
    scores, z = crowd
    frame = frame_of(scores.prototypes)
    choices = [NearestPrototypes(scores, frame, threads, index="ivf", recall=0.95) for threads in (1, 2)]
    assert choices[0].choice == choices[1].choice
    assert torch.equal(choices[0](z, 3), choices[1](z, 3))


@pytest.mark.parametrize(("index", "recall"), [("tree", 0.9), ("ivf", 0.0), ("ivf", 1.5)])
def test_an_index_or_a_recall_that_there_is_not_is_refused(crowd, index: str, recall: float) -> None:
    with pytest.raises(ConfigError, match="must be"):
        index_of(*crowd, index=index, recall=recall)
