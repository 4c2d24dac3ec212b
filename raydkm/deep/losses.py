"""What a network is trained on; each loss is a module, so that `DistributedDataParallel` sees all of its weights.

A loss is this worker's part of the mean over the rows of all workers: parts add up to it. After a call `each` has those
of its heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydkm.deep.shuffle import Share
from raydkm.features.draws import Draws
from raydkm.features.workers import several_workers, sum_over_workers

View = Callable[[Tensor, Draws], Tensor]

#: Width of the layers between features and what InfoNCE compares, and of the latter.
HIDDEN, PROJECTED = 256, 128

#: Of logits of features of unit length, at first.
SCALE = 16.0


@dataclass(frozen=True)
class Part:
    """What a worker computes a step on.

    Parameters
    ----------
    x : Tensor (n, *shape)
        Inputs of the encoder.
    share : Share
    salt : int
        Of this step's draws.
    other : Tensor (n, *shape), optional
        Of each row one that belongs to the same cluster (itself if not given).
    targets : list of Tensor
        For each head labels (n,) of int64, or posteriors (n, K).
    """

    x: Tensor
    share: Share
    salt: int
    other: Tensor | None = None
    targets: tuple[Tensor, ...] = ()

    def draws(self, view: int) -> Draws:
        """Random numbers for a view of the rows."""
        return Draws(self.share.rows.to(self.x.device), 2 * self.salt + view)


class Loss(nn.Module):
    """What all losses share."""

    each: Tensor

    def forward(self, part: Part) -> Tensor:
        losses = self.losses(part)
        self.each = losses.detach()
        return losses.mean()

    def losses(self, part: Part) -> Tensor:
        """This worker's part of the loss of each head, (heads,)."""
        raise NotImplementedError


class Contrastive(Loss):
    """InfoNCE of two views of each row (van den Oord et al. 2018; NT-Xent of Chen et al. 2020).

    The negatives of a row are all others of the step, of all workers.
    """

    def __init__(self, encoder: nn.Module, dim: int, view: View, temperature: float):
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PROJECTED))
        self._view, self._temperature = view, temperature

    def losses(self, part: Part) -> Tensor:
        first = self._view(part.x, part.draws(0))
        second = self._view(part.x if part.other is None else part.other, part.draws(1))
        size, slots = part.share.size, part.share.slots.to(part.x.device)
        encoded = self.encoder(torch.cat([first, second])).float()
        with torch.autocast(encoded.device.type, enabled=False):  # similarities are too fine for bf16
            projected = functional.normalize(self.project(encoded), dim=1)
            mine = torch.cat([slots, slots + size])
            similarities = projected @ of_all_workers(projected, mine, 2 * size).T / self._temperature
        itself = functional.one_hot(mine, 2 * size).bool()
        partner = torch.cat([slots + size, slots])
        loss = functional.cross_entropy(similarities.masked_fill(itself, -torch.inf), partner, reduction="sum")
        return loss[None] / (2 * size)


def of_all_workers(rows: Tensor, places: Tensor, size: int) -> Tensor:
    """The rows (size, d) of all workers, each at its place; gradients find their way back to the worker they are of."""
    everyone = torch.zeros(size, rows.shape[1], dtype=rows.dtype, device=rows.device).index_copy(0, places, rows)
    return sum_over_workers(everyone) if several_workers() else everyone


class Autoencoder(Loss):
    """Mean squared error of the reconstruction of a row, from what `denoising` leaves of it (Vincent et al. 2008)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, denoising: float = 0.0):
        super().__init__()
        self.encoder, self.decoder, self._denoising = encoder, decoder, denoising

    def losses(self, part: Part) -> Tensor:
        return reconstruction(part, self.decoder(self.encoder(incomplete(part, self._denoising))))[None]


def incomplete(part: Part, missing: float) -> Tensor:
    """The rows with so large a part of their numbers set to zero, and the others larger, so that means stay."""
    if not missing:
        return part.x
    kept = part.draws(0).uniform(*part.x.shape[1:]) >= missing
    return part.x * kept / (1 - missing)


def reconstruction(part: Part, made: Tensor) -> Tensor:
    error = (made.float() - part.x).square().flatten(1).mean(1)
    return error.sum() / part.share.size


class CrossEntropy(Loss):
    """Cross-entropy of targets and the posteriors of linear heads for a view of the row, averaged over the heads.

    Of features of unit length logits are scaled, by a number that is learned too.

    With the targets fixed, it is what of the discriminative losses (mi, kl, sinkhorn) depends on the model.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        clusters: list[int],
        view: View,
        *,
        unit: bool = False,
        smoothing: float = 0.0,
    ):
        super().__init__()
        self._unit, self._smoothing = unit, smoothing
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE))) if unit else None
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(dim, count) for count in clusters)
        self.view = view

    def head(self, number: int) -> nn.Linear:
        """A head, with the scale, of features as they are clustered."""
        found = copy.deepcopy(self.heads[number])
        assert isinstance(found, nn.Linear)
        if self.log_scale is not None:
            found.weight.data *= self.log_scale.exp()
        return found

    def losses(self, part: Part) -> Tensor:
        features = self.encoder(self.view(part.x, part.draws(0)))
        if self.log_scale is not None:
            features = functional.normalize(features.float(), dim=1) * self.log_scale.exp()
        losses = [
            functional.cross_entropy(head(features).float(), target, reduction="sum", label_smoothing=self._smoothing)
            for head, target in zip(self.heads, part.targets, strict=True)
        ]
        return torch.stack(losses) / part.share.size


class SRKMeans(Loss):
    """The loss of SR-K-means as a function of the encoder, with the reconstruction of the row (Jabi et al., eq. 16).

        (1 / T) [ sum_k q_ik ||z_i - theta_k||^2 - ||z_i||^2 ] + weight ||x_i - decode(z_i)||^2

    Parameters
    ----------
    encoder, decoder : nn.Module
    weight : float
        Of the reconstruction.
    denoising : float
        Part of a row's numbers that are set to zero before it is encoded.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, weight: float, denoising: float = 0.0):
        super().__init__()
        self.encoder, self.decoder, self._weight, self._denoising = encoder, decoder, weight, denoising
        self.prototypes: Tensor | None = None
        self.temperature, self.unit = 1.0, False

    def toward(self, prototypes: Tensor, temperature: float, *, unit: bool) -> None:
        """Train towards prototypes (K, d), in the coordinates of the features (of unit length if asked for)."""
        self.prototypes, self.temperature, self.unit = prototypes, temperature, unit

    def losses(self, part: Part) -> Tensor:
        assert self.prototypes is not None
        [target] = part.targets
        encoded = self.encoder(incomplete(part, self._denoising)).float()
        z = functional.normalize(encoded, dim=1) if self.unit else encoded
        q = target if target.ndim == 2 else functional.one_hot(target, len(self.prototypes)).to(z.dtype)
        theta = self.prototypes
        with torch.autocast(z.device.type, enabled=False):
            # sum_k q_k ||z - theta_k||^2 - ||z||^2, without differences of rows and prototypes
            pulls = q @ theta.square().sum(1) - 2 * (z * (q @ theta)).sum(1)
        clusters = pulls.sum() / (self.temperature * part.share.size)
        return (clusters + self._weight * reconstruction(part, self.decoder(encoded)))[None]
