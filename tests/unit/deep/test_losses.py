"""Losses: parts of all workers add up to the loss of one, and so do their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raydkm.deep.losses import Autoencoder, Contrastive, CrossEntropy, Part, SRKMeans, incomplete
from raydkm.deep.shuffle import Share
from raydkm.features.draws import Draws
from tests.unit.engine.processes import answers_of

ROWS, DIM = 40, 6


def noisy(x: Tensor, draws: Draws) -> Tensor:
    return x + 0.1 * draws.normal(x.shape[1])


def losses() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(DIM, 4), nn.Linear(4, DIM)
    clustering = SRKMeans(encoder, decoder, 0.5, 0.3)
    clustering.toward(torch.randn(3, 4), 0.7, unit=False)
    return {
        "contrastive": Contrastive(encoder, 4, noisy, 0.3),
        "autoencoder": Autoencoder(encoder, decoder, 0.3),
        "cross-entropy": CrossEntropy(encoder, 4, [3, 3], noisy),
        "sr-kmeans": clustering,
    }


def part_of(name: str, slots: Tensor) -> Part:
    x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    q = functional.softmax(torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    targets = {"cross-entropy": (q, q.argmax(1)), "sr-kmeans": (q,)}.get(name, ())
    share = Share(ROWS, slots, slots + 1000)
    return Part(x[slots], share, 7, None, tuple(target[slots] for target in targets))


def loss_and_gradients(name: str, slots: Tensor) -> tuple[float, list[Tensor]]:
    module = losses()[name]
    loss = module(part_of(name, slots))
    loss.backward()
    return loss.item(), [weight.grad for weight in module.parameters()]


def in_a_worker(comm: Any, cuts: list[int]) -> dict[str, tuple[float, list[Tensor]]]:
    mine = torch.arange(ROWS)[cuts[comm.rank] : cuts[comm.rank + 1]].flip(0)
    return {name: loss_and_gradients(name, mine) for name in losses()}


@pytest.fixture(scope="module", params=[[0, 13, 40], [0, 20, 21, 40]])
def of_workers(request: pytest.FixtureRequest) -> list[dict[str, tuple[float, list[Tensor]]]]:
    return list(answers_of(len(request.param) - 1, in_a_worker, request.param).values())


@pytest.mark.parametrize("name", ["contrastive", "autoencoder", "cross-entropy", "sr-kmeans"])
def test_workers_add_up_to_one(name: str, of_workers: list[dict[str, Any]]) -> None:
    loss, gradients = loss_and_gradients(name, torch.arange(ROWS))
    assert sum(parts[name][0] for parts in of_workers) == pytest.approx(loss, rel=1e-5)
    for number, gradient in enumerate(gradients):
        summed = sum(parts[name][1][number] for parts in of_workers)
        torch.testing.assert_close(summed, gradient, rtol=1e-4, atol=1e-6)


def test_what_is_left_of_a_row_has_its_mean_and_follows_from_the_row_alone() -> None:
    rows = torch.arange(500)
    part = Part(torch.ones(500, 40), Share(500, rows, rows), 7)
    left = incomplete(part, 0.25)
    torch.testing.assert_close(left.unique(), torch.tensor([0.0, 4 / 3]))
    assert float(left.mean()) == pytest.approx(1, abs=0.02)
    few = Part(part.x[100:120], Share(500, rows[100:120], rows[100:120]), 7)
    assert torch.equal(incomplete(few, 0.25), left[100:120])
    assert incomplete(part, 0.0) is part.x


def test_contrastive_loss_is_that_of_its_definition() -> None:
    module, part = losses()["contrastive"], part_of("contrastive", torch.arange(ROWS))
    views = torch.cat([noisy(part.x, part.draws(view)) for view in (0, 1)])
    z = functional.normalize(module.project(module.encoder(views)), dim=1).double()
    expected = 0.0
    for i in range(2 * ROWS):
        similar = [math.exp(float(z[i] @ z[j]) / 0.3) for j in range(2 * ROWS) if j != i]
        expected -= math.log(math.exp(float(z[i] @ z[(i + ROWS) % (2 * ROWS)]) / 0.3) / sum(similar)) / (2 * ROWS)
    assert float(module(part)) == pytest.approx(expected, rel=1e-5)


def test_sr_kmeans_is_the_distance_to_the_prototypes_but_for_the_length_of_the_row() -> None:
    module, part = losses()["sr-kmeans"], part_of("sr-kmeans", torch.arange(ROWS))
    z = module.encoder(incomplete(part, 0.3))
    distances = (z[:, None] - module.prototypes).square().sum(2)
    clusters = ((part.targets[0] * distances).sum(1) - z.square().sum(1)).mean() / 0.7
    error = (module.decoder(z) - part.x).square().mean()
    assert float(module(part)) == pytest.approx(float(clusters + 0.5 * error), rel=1e-5)
