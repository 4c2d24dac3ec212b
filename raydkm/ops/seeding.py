"""Initial prototypes from a sample of rows, weighted throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from raydkm.ops.distances import Points, improved, keep_nearest, no_candidate

#: From points, their weights, K and a generator: the numbers (K,) of the points to begin at.
Seeding = Callable[[Points, Tensor, int, Generator], Tensor]


def random_rows(points: Points, weight: Tensor, clusters: int, rng: Generator) -> Tensor:
    """K distinct rows, each next one drawn with probability proportional to its weight."""
    share = (weight / weight.sum()).numpy()
    return torch.from_numpy(rng.choice(len(points), clusters, replace=False, p=share / share.sum()))


def kmeans_plus_plus(points: Points, weight: Tensor, clusters: int, rng: Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007), the best of 2 + log K draws at each step.

    Parameters
    ----------
    points : Points of n >= K rows
    weight : Tensor (n,) of float64, positive

    Returns
    -------
    Tensor (K,) of int64
        Numbers of rows. Where all remaining rows coincide with chosen ones, further draws follow the weights alone.
    """
    trials = 2 + int(math.log(clusters))
    chosen = torch.empty(clusters, dtype=torch.int64)
    chosen[0] = _draw(weight, 1, rng)[0]
    nearest, owner = no_candidate(len(points))
    keep_nearest(points, points[chosen[:1]], 0, nearest, owner)
    for k in range(1, clusters):
        mass = weight * nearest
        candidates = _draw(mass if float(mass.sum()) > 0 else weight, trials, rng)
        after = improved(points, points[candidates], nearest)
        best = int(torch.mv(after.T, weight).argmin())
        chosen[k] = candidates[best]
        nearest = after[:, best].contiguous()
    return chosen


def kmeans_parallel(points: Points, weight: Tensor, clusters: int, rng: Generator, rounds: int = 5) -> Tensor:
    """k-means|| (Bahmani et al. 2012): oversample 2K candidates a round, then k-means++ on the weighted candidates.

    Parameters and result as in `kmeans_plus_plus`.
    """
    picked = _draw(weight, 1, rng)
    nearest, owner = no_candidate(len(points))
    candidates = picked
    for round_ in range(rounds + 1):
        keep_nearest(points, points[picked], len(candidates) - len(picked), nearest, owner)
        mass = weight * nearest
        total = float(mass.sum())
        if round_ == rounds or total == 0:
            break
        chance = mass * (2 * clusters / total)
        picked = torch.from_numpy(np.flatnonzero(rng.random(len(points)) < chance.numpy()))
        candidates = torch.cat((candidates, picked))
    if len(candidates) < clusters:  # fewer distinct rows than clusters, or an unlucky tiny sample
        return kmeans_plus_plus(points, weight, clusters, rng)
    owned = torch.zeros(len(candidates), dtype=torch.float64).index_add_(0, owner, weight)
    return candidates[kmeans_plus_plus(points[candidates], owned.clamp_(min=1e-300), clusters, rng)]


def afk_mc2(points: Points, weight: Tensor, clusters: int, rng: Generator, chain: int = 200) -> Tensor:
    """AFK-MC^2 (Bachem et al., NeurIPS 2016): k-means++ by Markov chains of length `chain`, without a pass a prototype.

    The proposal mixes the weights and the squared distances to the first prototype, half and half. Parameters and
    result as in `kmeans_plus_plus`.
    """
    first = _draw(weight, 1, rng)
    numbers, chosen = first.repeat(clusters), points[first.repeat(clusters)]
    nearest, owner = no_candidate(len(points))
    keep_nearest(points, chosen[:1], 0, nearest, owner)
    mass = weight * nearest
    proposal = weight / weight.sum() + (mass / mass.sum() if float(mass.sum()) > 0 else 0.0)
    for k in range(1, clusters):
        candidates = _draw(proposal, chain, rng)
        rows = points[candidates]
        nearest, owner = no_candidate(chain)
        keep_nearest(rows, chosen[:k], 0, nearest, owner)
        ratio = (weight[candidates] * nearest / proposal[candidates]).tolist()
        at = 0
        for step, chance in enumerate(rng.random(chain)):
            if ratio[step] > chance * ratio[at]:
                at = step
        numbers[k] = candidates[at]
        chosen.put(k, rows[at : at + 1])
    return numbers


SEEDINGS: dict[str, Seeding] = {
    "k-means||": kmeans_parallel,
    "k-means++": kmeans_plus_plus,
    "afk-mc2": afk_mc2,
    "random": random_rows,
}


def _draw(mass: Tensor, count: int, rng: Generator) -> Tensor:
    """`count` indices drawn with replacement, proportionally to mass (n,) of float64; none of mass 0."""
    cumulative = torch.cumsum(mass, 0)
    total = float(cumulative[-1])
    places = torch.from_numpy(rng.random(count) * total).clamp_(max=math.nextafter(total, 0.0))
    return torch.searchsorted(cumulative, places, right=True)
