"""One stage of training: epochs of steps over the rows of all workers, which can end and go on at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raydkm.config import FeatureConfig
from raydkm.deep.losses import Loss, Part
from raydkm.deep.shuffle import Shuffle
from raydkm.engine.comm import Comm
from raydkm.engine.where import torch_threads

#: Part of a stage's steps in which the learning rate rises.
RISE = 0.15

#: What makes this worker's part of a step from what `Shuffle` says of it; raises where rows are missing.
Make = Callable[[Any, int], Part]


@dataclass
class Stage:
    """A stage and how far it has come.

    Parameters
    ----------
    name : str
    module : Loss
        With all networks that are trained.
    epochs : int
    steps : int
        Steps of an epoch.
    highest : float
        Of the learning rate, as a part of the configured one.
    after, until : int
        The stage's epochs among those that share the course of the learning rate: its first, and how many there are.
    step : int
        Steps done.
    total : Tensor (heads,) of float64
        Losses of the epoch's steps so far, of all workers.
    """

    name: str
    module: Loss
    epochs: int
    steps: int
    config: FeatureConfig
    highest: float = 1.0
    after: int = 0
    until: int | None = None
    step: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def __post_init__(self) -> None:
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            weights, lr=self.config.learning_rate, weight_decay=self.config.weight_decay, foreach=True
        )

    @property
    def done(self) -> bool:
        return self.step >= self.epochs * self.steps

    def rate(self) -> float:
        """The learning rate of the next step: it rises, then falls to zero along half a cosine."""
        highest, total = self.highest * self.config.learning_rate, (self.until or self.epochs) * self.steps
        rise, step = max(1.0, RISE * total), self.after * self.steps + self.step
        if step < rise:
            return highest * (step + 1) / (rise + 1)
        return highest * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and what the optimiser remembers of each; on the CPU."""
        found = {"total.": self.total} | {f"module.{name}": each for name, each in self.module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on after `step` steps, from the tensors that there were then."""
        parts: dict[str, dict[str, Any]] = {"module": {}, "optimizer": {}, "total": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        self.module.load_state_dict(parts["module"])
        described, weights = self.optimizer.state_dict(), self.optimizer.param_groups[0]["params"]
        for name, tensor in parts["optimizer"].items():
            number, _, what = name.partition(".")
            state = described["state"].setdefault(int(number), {})
            like = weights[int(number)]
            state[what] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        self.optimizer.load_state_dict(described)
        self.total, self.step = parts["total"][""], step


@dataclass(frozen=True)
class Trained:
    """What an epoch came to: its mean loss, of several heads also of each."""

    stage: str
    epoch: int
    loss: float
    heads: list[float]
    seconds: float
    rows_per_second: float


def train(
    stage: Stage,
    shuffle: Shuffle,
    make: Make,
    comm: Comm,
    *,
    threads: int,
    device: torch.device,
    salt: int,
    on_step: Callable[[], None],
    on_epoch: Callable[[Trained], None],
) -> None:
    """Do the steps of a stage that are left.

    Parameters
    ----------
    make : callable
        This worker's `Part` of a step, of its `Share` and salt.
    salt : int
        From which the draws of all steps follow.
    on_step : callable
        Called after every step.
    on_epoch : callable
        Called after every epoch, in all workers.
    """
    module, world = stage.module.to(device).train(), comm.world_size
    unused = ":" in stage.config.encoder  # somebody's own may have weights that a loss does not reach
    net = DistributedDataParallel(module, find_unused_parameters=unused) if world > 1 else module
    low = stage.config.amp == "bf16" or (stage.config.amp == "auto" and has_bf16(device))
    with torch_threads(threads):
        stage.total, began, since = stage.total.to(device), time.perf_counter(), stage.step
        while not stage.done:
            epoch, step = divmod(stage.step, stage.steps)
            part = make(shuffle.share(epoch, step), (salt << 32) + stage.step)
            for group in stage.optimizer.param_groups:
                group["lr"] = stage.rate()
            stage.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = net(part)
            (loss * world).backward()  # the mean of gradients over workers then is the gradient of the sum of parts
            stage.optimizer.step()
            each = module.each.double()
            if world > 1:
                torch.distributed.all_reduce(each)
            stage.total = stage.total + each
            stage.step += 1
            if step + 1 == stage.steps:
                heads, seconds = stage.total / stage.steps, time.perf_counter() - began
                rows = sum(shuffle.size(number % stage.steps) for number in range(since, stage.step))
                on_epoch(Trained(stage.name, epoch + 1, float(heads.mean()), heads.tolist(), seconds, rows / seconds))
                stage.total = torch.zeros_like(stage.total)
                began, since = time.perf_counter(), stage.step
            on_step()
    module.eval()


def has_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are far faster there than of float32: on GPUs, and CPUs with matrix registers."""
    return device.type == "cuda" or bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
