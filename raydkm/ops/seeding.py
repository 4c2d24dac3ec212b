"""Initial prototypes from a sample of rows, weighted throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

Seeding = Callable[[Tensor, Tensor, int, Generator], Tensor]


def random_rows(z: Tensor, weight: Tensor, clusters: int, rng: Generator) -> Tensor:
    """K distinct rows, each next one drawn with probability proportional to its weight."""
    share = (weight / weight.sum()).numpy()
    return z[torch.from_numpy(rng.choice(len(z), clusters, replace=False, p=share / share.sum()))]


def kmeans_plus_plus(z: Tensor, weight: Tensor, clusters: int, rng: Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007), the best of 2 + log K draws at each step.

    Parameters
    ----------
    z : Tensor (n, d), n >= K
    weight : Tensor (n,) of float64, positive

    Returns
    -------
    Tensor (K, d)
        Rows of z. Where all remaining rows coincide with chosen ones, further draws follow the weights alone.
    """
    trials = 2 + int(math.log(clusters))
    chosen = torch.empty(clusters, z.shape[1], dtype=z.dtype)
    square = z.square().sum(1)
    chosen[0] = z[_draw(weight, 1, rng)[0]]
    nearest = _squares(z, square, chosen[:1])[:, 0]
    for k in range(1, clusters):
        mass = weight * nearest
        candidates = _draw(mass if float(mass.sum()) > 0 else weight, trials, rng)
        improved = torch.minimum(nearest[:, None], _squares(z, square, z[candidates]))
        best = int(torch.mv(improved.T.double(), weight).argmin())
        chosen[k] = z[candidates[best]]
        nearest = improved[:, best].contiguous()
    return chosen


def kmeans_parallel(z: Tensor, weight: Tensor, clusters: int, rng: Generator, rounds: int = 5) -> Tensor:
    """k-means|| (Bahmani et al. 2012): oversample 2K candidates a round, then k-means++ on the weighted candidates.

    Parameters and result as in `kmeans_plus_plus`.
    """
    square = z.square().sum(1)
    picked = _draw(weight, 1, rng)
    nearest = torch.full((len(z),), torch.inf)
    owner = torch.zeros(len(z), dtype=torch.int64)
    candidates = picked
    for round_ in range(rounds + 1):
        keep_nearest(z, square, z[picked], len(candidates) - len(picked), nearest, owner)
        mass = weight * nearest
        total = float(mass.sum())
        if round_ == rounds or total == 0:
            break
        chance = mass * (2 * clusters / total)
        picked = torch.from_numpy(np.flatnonzero(rng.random(len(z)) < chance.numpy()))
        candidates = torch.cat((candidates, picked))
    if len(candidates) < clusters:  # fewer distinct rows than clusters, or an unlucky tiny sample
        return kmeans_plus_plus(z, weight, clusters, rng)
    owned = torch.zeros(len(candidates), dtype=torch.float64).index_add_(0, owner, weight)
    return kmeans_plus_plus(z[candidates], owned.clamp_(min=1e-300), clusters, rng)


def afk_mc2(z: Tensor, weight: Tensor, clusters: int, rng: Generator, chain: int = 200) -> Tensor:
    """AFK-MC^2 (Bachem et al., NeurIPS 2016): k-means++ by Markov chains of length `chain`, without a pass a prototype.

    The proposal mixes the weights and the squared distances to the first prototype, half and half. Parameters and
    result as in `kmeans_plus_plus`.
    """
    chosen = torch.empty(clusters, z.shape[1], dtype=z.dtype)
    chosen[0] = z[_draw(weight, 1, rng)[0]]
    mass = weight * _squares(z, z.square().sum(1), chosen[:1])[:, 0]
    proposal = weight / weight.sum() + (mass / mass.sum() if float(mass.sum()) > 0 else 0.0)
    for k in range(1, clusters):
        candidates = _draw(proposal, chain, rng)
        rows = z[candidates]
        nearest = _squares(rows, rows.square().sum(1), chosen[:k]).amin(1)
        ratio = (weight[candidates] * nearest / proposal[candidates]).tolist()
        at = 0
        for step, chance in enumerate(rng.random(chain)):
            if ratio[step] > chance * ratio[at]:
                at = step
        chosen[k] = rows[at]
    return chosen


def keep_nearest(z: Tensor, square: Tensor, new: Tensor, first: int, nearest: Tensor, owner: Tensor) -> None:
    """Update, in place, each row's squared distance to its nearest candidate and that candidate's number.

    Of the candidates, `new` (m, d) are those from number `first` on; a round may draw none.
    """
    for start in range(0, len(z) if len(new) else 0, 1024):
        rows = slice(start, start + 1024)
        closest, which = _squares(z[rows], square[rows], new).min(1)
        closer = closest < nearest[rows]
        nearest[rows] = torch.where(closer, closest, nearest[rows])
        owner[rows] = torch.where(closer, (which + first).to(owner.dtype), owner[rows])


SEEDINGS: dict[str, Seeding] = {
    "k-means||": kmeans_parallel,
    "k-means++": kmeans_plus_plus,
    "afk-mc2": afk_mc2,
    "random": random_rows,
}


def _draw(mass: Tensor, count: int, rng: Generator) -> Tensor:
    """`count` indices drawn with replacement, proportionally to mass (n,) of float64."""
    cumulative = torch.cumsum(mass, 0)
    places = torch.from_numpy(rng.random(count)) * cumulative[-1]
    return torch.searchsorted(cumulative, places, right=True).clamp_(max=len(mass) - 1)


def _squares(z: Tensor, square: Tensor, centers: Tensor) -> Tensor:
    """Squared distances (n, m), never negative."""
    cross = torch.addmm(centers.square().sum(1), z, centers.T, alpha=-2)
    return cross.add_(square[:, None]).clamp_(min=0)
