"""The training of an encoder together with the clusters, stage after stage, from the last checkpoint on."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from raydkm.config import arguments_of
from raydkm.deep.clusters import Clusterer, Clustering, heads_of, means_of
from raydkm.deep.losses import Autoencoder, Contrastive, CrossEntropy, Loss, Part, SRKMeans
from raydkm.deep.partners import Partners
from raydkm.deep.saved import Saved, SavedFile
from raydkm.deep.seeding import seeded
from raydkm.deep.shuffle import Share, Shuffle
from raydkm.deep.train import Stage, Trained, train
from raydkm.engine.comm import gathered
from raydkm.engine.neighbours import agreement
from raydkm.engine.progress import Reporter
from raydkm.errors import ConfigError, EngineError
from raydkm.features.encoders import Encoder, build_encoder
from raydkm.features.features import Features
from raydkm.features.views import VIEWS, VectorView, View
from raydkm.objectives import OBJECTIVES
from raydkm.objectives.distance import DistanceObjective

logger = logging.getLogger("raydkm")

#: A marginal entropy below this part of log K is a sign of collapse.
UNEVEN = 0.5


@dataclass(frozen=True)
class Planned:
    """A stage: of a kind of loss, the `number`-th of its kind where there may be several, for some epochs."""

    kind: str
    epochs: int
    number: int | None = None

    @property
    def name(self) -> str:
        return self.kind if self.number is None else f"{self.kind} {self.number}"


class Training:
    """Trains the encoder of `features`.

    Parameters
    ----------
    clusterer : Clusterer
    features : Features
        The maps; an encoder is added.
    file : SavedFile, optional
        Where to go on from, if there is a checkpoint, and to save others.
    report : Reporter

    Attributes
    ----------
    features : Features
        With the encoder.
    history : list of dict
        An entry for each epoch and each clustering.
    clusterings : list of Clustering
        Of the last round, for each head.
    best : int
        The head of least loss.
    """

    def __init__(self, clusterer: Clusterer, features: Features, file: SavedFile | None, report: Reporter):
        self._of, self._file, self._report = clusterer, file, report
        config, made = clusterer.config, clusterer.made
        _check_loss(clusterer)
        encoder = build_encoder(made.encoder, features.input_shape, arguments_of(made.encoder_args), config.seed)
        encoder = encoder.to(clusterer.device).eval()
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.features = replace(features, encoder=encoder)
        self.history: list[dict[str, Any]] = []
        self.clusterings: list[Clustering] = []
        self.best = 0
        self._learned: Tensor | None = None  # which of this worker's rows are learned from in a round
        self.heads = heads_of(config, made)
        counts = clusterer.comm.all_gather(clusterer.rows.held)
        self._start, self._total = sum(counts[: clusterer.comm.rank]), sum(counts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._losses = self._modules(encoder)

    def run(self, starts: list[Tensor | None]) -> None:
        """Do what is left of all stages; the first clusterings begin at prototypes (K, d) where they are given."""
        comm, stages = self._of.comm, self._planned()
        [saved, *_] = gathered(comm, lambda: self._file.load() if self._file is not None and comm.rank == 0 else None)
        if saved is not None:
            self.history, self.best = list(saved.history), saved.best
            logger.info("going on after step %d of %s", saved.step, stages[saved.stage].name)
        for number, planned in enumerate(stages):
            if saved is None or number >= saved.stage:
                self._stage(number, planned, starts, saved if saved and number == saved.stage else None)

    def _planned(self) -> list[Planned]:
        made = self._of.made
        stages = [] if made.pretrain == "none" else [Planned(made.pretrain, made.pretrain_epochs)]
        if made.positives:  # of which each epoch has neighbours of its own
            stages += [Planned("positives", 1, number + 1) for number in range(made.positive_epochs)]
        return stages + [Planned("round", made.epochs, number + 1) for number in range(made.rounds)]

    def _stage(self, number: int, planned: Planned, starts: list[Tensor | None], saved: Saved | None) -> None:
        of, encoder, seed = self._of, self.features.encoder, self._of.config.seed * 64 + number
        assert encoder is not None
        if saved is not None:
            encoder.load_state_dict(saved.teacher)
        teacher = encoder.weights()
        loss, targets = self._losses[planned.kind], None
        if planned.kind == "round":
            begun = starts if saved is None else saved.starts
            starts, targets = self._clustered(planned.name, begun, again=saved is not None)
        shuffle = Shuffle(self._total, self._start, self._start + of.rows.held, of.made.batch, seed)
        last = planned.kind == "round" and planned.number == of.made.rounds and of.made.last_strength is not None
        if last and isinstance(loss, CrossEntropy):
            loss.view = self._view(of.made.last_strength)
        highest = 0.5 if last else 1.0
        stage = Stage(planned.name, loss.to(of.device), planned.epochs, shuffle.steps, of.made, highest=highest)
        if loss is self._losses.get("contrastive"):  # with all positives one course of the learning rate
            stage.until = of.made.pretrain_epochs + of.made.positive_epochs * (of.made.positives > 0)
            stage.after = 0 if planned.number is None else of.made.pretrain_epochs + planned.number - 1
        if saved is not None:
            stage.restore(saved.tensors, saved.step)

        def save(*, now: bool = False) -> None:
            if self._file is not None and of.comm.rank == 0 and (now or self._file.due()):
                tensors = stage.tensors()
                self._file.save(Saved(number, stage.step, tensors, teacher, starts, self.best, self.history))

        save(now=saved is None)
        make = self._maker(targets, self._partners() if planned.kind == "positives" else None)
        threads, device = of.threads, of.device
        train(
            stage, shuffle, make, of.comm, threads=threads, device=device, salt=seed, on_step=save, on_epoch=self._keep
        )
        save(now=True)

    def head(self) -> nn.Linear | None:
        """The best head, where there is one."""
        loss = self._losses.get("round")
        return loss.head(self.best) if isinstance(loss, CrossEntropy) else None

    def _clustered(self, name: str, starts: list[Tensor | None], *, again: bool) -> tuple[list[Tensor | None], Any]:
        """Cluster the features so far for each head; return where that began, and the targets of rows at positions."""
        of = self._of
        rows, graph = of.prepared(of.encoded(self.features))
        if self.clusterings and not again:  # clusters keep their numbers, which the heads have learned
            pairs = zip(self.clusterings, self.heads, strict=True)
            starts = [means_of(rows, found.labels, head, of.comm) for found, head in pairs]
        starts = [
            seeded(rows, self._start, of.comm, head, threads=of.threads) if start is None else start
            for head, start in zip(self.heads, starts, strict=True)
        ]
        self.clusterings = [of.clustered(rows, head, start) for head, start in zip(self.heads, starts, strict=True)]
        for head, found in enumerate(self.clusterings):
            if not again:
                self._tell({"stage": name, "head": head, "clusters": len(found.fitted.counts), **found.summary()})

        def targets(positions: Tensor) -> tuple[Tensor, ...]:
            features = rows.take(positions)
            return tuple(found.targets(features, positions) for found in self.clusterings)

        self._learned = None
        if of.made.agreement and graph is not None:
            self._learned = agreement(self.clusterings[0].labels, graph, of.comm) >= of.made.agreement
        loss = self._losses["round"]
        if isinstance(loss, SRKMeans):
            [found] = self.clusterings
            theta = torch.from_numpy(found.model.cluster_centers).float().to(of.device)
            loss.toward(theta, found.model.temperature, unit=of.config.metric == "cosine")
        return starts, targets

    def _maker(self, targets: Any, partners: Partners | None) -> Any:
        """What makes a worker's part of a step."""
        of = self._of

        kept = 1.0
        if targets is not None and self._learned is not None:
            kept = sum(of.comm.all_gather(int(self._learned.sum()))) / self._total
            self._tell({"stage": "agreement", "learned": round(kept, 6)})
            if kept == 0:
                raise EngineError(f"no row's neighbours agree with it to {of.made.agreement:g}; lower agreement")

        def make(share: Share, salt: int) -> Part:
            if kept < 1:
                assert self._learned is not None
                among = self._learned[share.rows - self._start]
                share = Share(max(1, round(kept * share.size)), share.slots[among], share.rows[among])
            positions = share.rows - self._start
            x = self.features.inputs(of.rows.take(positions).to(of.device))
            other = None if partners is None else self.features.inputs(partners(share, salt).to(of.device))
            given = () if targets is None else tuple(target.to(of.device) for target in targets(positions))
            return Part(x, share, salt, other, given)

        return make

    def _partners(self) -> Partners:
        """Neighbours by their features so far."""
        of = self._of
        graph = of.graph(of.mapped(of.encoded(self.features)), of.made.positives)
        return Partners(of.rows, graph.ids, self._start, of.comm)

    def _keep(self, done: Trained) -> None:
        alike = done.heads[: self._of.made.heads]
        self.best = alike.index(min(alike))
        entry = asdict(done)
        if len(done.heads) == 1:
            del entry["heads"]
        self._tell(entry)

    def _tell(self, entry: dict[str, Any]) -> None:
        self.history.append(entry)
        self._report("training", **entry)
        if self._of.comm.rank == 0 and "clusters" in entry:
            for sign in _collapse(entry):
                logger.warning("%s: %s", entry["stage"], sign)

    def _view(self, strength: float | None = None) -> View:
        """The views that the configuration asks for; noise of vectors is measured by the columns' deviations."""
        made = self._of.made
        shape = self.features.input_shape
        fitting = {1: "vector", 2: "series", 3: "image"}[len(shape)]
        if made.view not in ("auto", fitting):
            raise ConfigError(
                f"view {made.view}: the encoder takes rows of shape {shape}, whose views are of {fitting}"
            )
        kind, given = VIEWS[fitting], arguments_of(made.view_args)
        known = {field.name for field in fields(kind)} - ({"scale"} if kind is VectorView else set())
        if unknown := sorted(set(given) - known):
            raise ConfigError(f"view_args: {fitting} views have no {unknown[0]!r}, but {', '.join(sorted(known))}")
        given = {"strength": made.strength if strength is None else strength} | given
        return kind(**given) if kind is not VectorView else VectorView(scale=self._deviations(), **given)

    def _deviations(self) -> Tensor:
        """Standard deviations (d,) of the columns of the encoder's inputs, of all workers' rows."""
        rows, sums = self._of.rows, torch.zeros(3, 1, dtype=torch.float64)
        for batch in rows.batches():
            x = self.features.inputs(batch.rows).flatten(1).double().cpu()
            sums = sums + torch.stack([torch.ones_like(x[0]) * len(x), x.sum(0), x.square().sum(0)])
        count, total, squares = torch.stack(self._of.comm.all_gather(sums)).sum(0)
        return (squares / count - (total / count).square()).clamp(min=0).sqrt().float().to(self._of.device)

    def _modules(self, encoder: Encoder) -> dict[str, Loss]:
        """The losses that are used, by the names of stages."""
        made, dim = self._of.made, encoder.dim
        view = self._view()
        decoded = made.pretrain == "autoencoder" or (made.rounds and made.loss == "sr-kmeans")
        decoder = encoder.decoder(self._of.config.seed) if decoded else nn.Identity()
        modules: dict[str, Loss] = {}
        if made.pretrain == "contrastive":
            modules["contrastive"] = modules["positives"] = Contrastive(encoder, dim, view, made.contrast_temperature)
        if made.pretrain == "autoencoder":
            modules["autoencoder"] = Autoencoder(encoder, decoder, made.denoising)
        if made.rounds and made.loss == "sr-kmeans":
            modules["round"] = SRKMeans(encoder, decoder, made.reconstruction, made.denoising)
        elif made.rounds:
            clusters = [head.clusters for head in self.heads]
            unit = self._of.config.metric == "cosine"
            modules["round"] = CrossEntropy(encoder, dim, clusters, view, unit=unit, smoothing=made.label_smoothing)
        return modules


def _check_loss(clusterer: Clusterer) -> None:
    kind = OBJECTIVES[clusterer.config.objective]
    if clusterer.made.loss == "sr-kmeans" and (kind.hard or not issubclass(kind, DistanceObjective)):
        raise ConfigError("loss sr-kmeans goes with the objectives sr-kmeans and soft-kmeans")


def _collapse(entry: dict[str, Any]) -> list[str]:
    """Sentences that tell of a collapse of the clusters."""
    signs = []
    if entry["dead"]:
        signs.append(f"{entry['dead']} of {entry['clusters']} clusters have no rows")
    if entry["duplicates"]:
        signs.append(f"{entry['duplicates']} prototypes are the same as another one")
    if entry["marginal_entropy"] < UNEVEN * math.log(entry["clusters"]):
        signs.append(f"clusters are uneven: marginal entropy {entry['marginal_entropy']:.3g} nats")
    return signs
