"""Neighbours and averages over them: those of all rows, however many workers share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raydkm.engine import neighbours as module
from raydkm.engine.comm import Solo
from raydkm.engine.neighbours import agreement, neighbours, smoothed
from raydkm.errors import InputError
from raydkm.ops import nearest
from raydkm.ops.nearest import NearestRows
from tests.unit.engine.processes import answers_of

ROWS, DIM, COUNT = 500, 12, 7


def unit_rows(rows: int = ROWS) -> torch.Tensor:
    x = np.random.default_rng(0).normal(size=(rows, DIM))
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()


def expected(z: torch.Tensor) -> torch.Tensor:
    similar = z.double() @ z.double().T
    similar.fill_diagonal_(-torch.inf)
    return similar.topk(COUNT, dim=1).indices


def expected_mean(z: torch.Tensor, hops: int) -> torch.Tensor:
    edges = torch.zeros(len(z), len(z), dtype=torch.float64).scatter_(1, expected(z), 1.0)
    edges = edges + edges.T
    walk = edges / edges.sum(1, keepdim=True)
    return torch.linalg.matrix_power(walk, hops) @ z.double()


def close(found: torch.Tensor, hops: int) -> None:
    torch.testing.assert_close(found.double(), expected_mean(unit_rows(), hops), rtol=0, atol=1e-6)


def test_neighbours_are_those_of_a_search_of_all_pairs() -> None:
    graph = neighbours(unit_rows(), Solo(), COUNT, threads=2)
    assert torch.equal(graph.ids, expected(unit_rows()))
    assert bool((graph.squares.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("hops", [0, 1, 3, 20])
def test_averages_are_those_of_a_random_walk(hops: int) -> None:
    graph = neighbours(unit_rows(), Solo(), COUNT, threads=1)
    close(smoothed(unit_rows(), graph, hops, Solo()), hops)


def test_agreement_is_the_share_of_neighbours_with_the_same_label() -> None:
    labels = torch.from_numpy(np.random.default_rng(3).integers(3, size=ROWS))
    graph = neighbours(unit_rows(), Solo(), COUNT, threads=1)
    shares = (labels[expected(unit_rows())] == labels[:, None]).double().mean(1)
    torch.testing.assert_close(agreement(labels, graph, Solo()).double(), shares, rtol=0, atol=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit_rows()
    whole = neighbours(z, Solo(), COUNT, threads=1)
    monkeypatch.setattr(module, "BLOCK_ROWS", 64)
    parts = neighbours(z, Solo(), COUNT, threads=1)
    assert torch.equal(parts.ids, whole.ids)
    close(smoothed(z, parts, 2, Solo()), 2)


def of_worker(comm: Any, cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    mine = unit_rows()[cuts[comm.rank] : cuts[comm.rank + 1]]
    graph = neighbours(mine, comm, COUNT, threads=1)
    labels = torch.arange(ROWS)[cuts[comm.rank] : cuts[comm.rank + 1]] % 3
    return graph.ids, smoothed(mine, graph, 2, comm), agreement(labels, graph, comm), graph.first


@pytest.mark.parametrize("cuts", [[0, 120, 500], [0, 3, 3, 500]], ids=["two", "three, one without rows"])
def test_workers_find_what_one_does(cuts: list[int]) -> None:
    answers = answers_of(len(cuts) - 1, of_worker, cuts)
    ids, means, shares, firsts = zip(*(answers[rank] for rank in sorted(answers)), strict=True)
    assert list(firsts) == cuts[:-1]
    assert torch.equal(torch.cat(ids), expected(unit_rows()))
    close(torch.cat(means), 2)
    same = (expected(unit_rows()) % 3 == torch.arange(ROWS)[:, None] % 3).float().mean(1)
    torch.testing.assert_close(torch.cat(shares), same)


def test_equal_rows_are_neighbours_in_the_order_of_their_numbers() -> None:
    z = unit_rows(4).repeat(3, 1)
    graph = neighbours(z, Solo(), 2, threads=1)
    assert graph.ids[0].tolist() == [4, 8]
    assert graph.ids[4].tolist() == [0, 8]
    assert graph.ids[8].tolist() == [0, 4]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="7 neighbours of each row, but only 7 rows"):
        neighbours(unit_rows(7), Solo(), COUNT, threads=1)


def test_many_rows_are_searched_in_an_inverted_file_of_good_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(40, DIM))
    z = torch.from_numpy(centres[rng.integers(40, size=6000)] + 0.3 * rng.normal(size=(6000, DIM))).float()
    z = torch.nn.functional.normalize(z, dim=1)
    _, exact = NearestRows(z, 1)(z[:500], 10)
    monkeypatch.setattr(nearest, "FEW_ROWS", 1000)
    _, found = NearestRows(z, 1)(z[:500], 10)
    same = (exact[:, :, None] == found[:, None]).any(2).double().mean()
    assert 0.96 < float(same) < 1
