"""Prototypes near to a row among very many, and nearest rows, through FAISS: the one module that imports it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydkm.errors import ConfigError
from raydkm.ops.approximate import cells
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.hard import HardAssignment
from raydkm.ops.scores import Scores

INDEXES = ("auto", "flat", "ivf", "hnsw")

#: With fewer prototypes than this, auto is flat without a look at the others.
FEW_FOR_AN_INDEX = 16_384

#: Time of a distance, as a multiple of one in the matrix products of a flat index. The choice follows from these and
#: from how many distances are computed, never from a clock, so that all workers choose alike.
COST = {"flat": 1.0, "ivf": 4.0, "hnsw": 10.0}

#: Lists probed, and candidates kept, from few to many.
IVF_EFFORTS = (4, 8, 16, 32, 64, 128)
HNSW_EFFORTS = (16, 32, 64, 128, 256, 512)
HNSW_LINKS = 32

#: Rows that recall is measured on.
SAMPLE_ROWS = 2048

#: Up to so many rows nearest rows are exact: of 70,000 x 256 an inverted file of recall 0.99 took 0.6 of the time.
FEW_ROWS = 2**17

#: Share of the nearest `SAMPLE_NEIGHBOURS` rows of a sample that are to be found among more.
GOOD_RECALL = 0.98
SAMPLE_NEIGHBOURS = 16


@dataclass(frozen=True)
class Choice:
    """What index was chosen, and why.

    Parameters
    ----------
    index : {"flat", "ivf", "hnsw"}
    effort : int
        Lists probed (ivf) or candidates kept (hnsw); 0 of flat.
    recall : float
        Share of the sampled rows whose best prototype it finds.
    cost : float
        Of a search, as a part of that of flat.
    """

    index: str
    effort: int
    recall: float
    cost: float


FLAT = Choice("flat", 0, 1.0, 1.0)


class NearestPrototypes:
    """An index of the prototypes, on the CPU, that proposes those with the best score_ik = z_i . theta_k + b_k.

    With equal scalings that is the nearest prototype; with balance, the best after scaling. Indexes search by distance:
    with a coordinate e_k more, of which e_k^2 = C - ||theta_k||^2 - 2 b_k >= 0, the nearest [theta_k, e_k] to [z, 0]
    has the highest score. A flat "index" is none: all prototypes are compared.

    Parameters
    ----------
    scores : Scores
        On the CPU.
    frame : Frame
    threads : int
        Of each search.
    index : {"auto", "flat", "ivf", "hnsw"}
        auto: flat for few prototypes, else the cheapest that reaches `recall`.
    recall : float in (0, 1]
        Share of the sampled rows whose best prototype is to be found. Where no effort reaches it, flat is taken.
    sample : RowTile, optional
        Rows to measure recall on; by default points half way between prototypes.

    Attributes
    ----------
    choice : Choice
    """

    def __init__(
        self,
        scores: Scores,
        frame: Frame,
        threads: int = 1,
        *,
        index: str = "auto",
        recall: float = 0.999,
        sample: RowTile | None = None,
    ):
        check_index(index, recall)
        self.choice = FLAT
        self.measured: tuple[Choice, ...] = ()
        kinds = [index] if index in ("ivf", "hnsw") else []
        if index == "auto" and len(scores) >= FEW_FOR_AN_INDEX:
            kinds = ["ivf", "hnsw"]
        if not kinds:
            return
        self._faiss, self._threads, self._scores = _faiss(), threads, scores
        self._vectors = _augmented(scores)
        sample = frame.tile(_between(scores.costs.prototypes) + frame.shift) if sample is None else sample
        sample = next(sample.split(SAMPLE_ROWS))
        best = HardAssignment(scores)(sample)
        measured = {kind: self._measured(kind, sample.z.float(), best, recall) for kind in kinds}
        good = [found for found in measured.values() if found[0].recall >= recall]
        if index == "auto":
            good = [found for found in good if found[0].cost < FLAT.cost]
        self.measured = tuple(choice for choice, _ in measured.values())
        if good:
            self.choice, self._index = min(good, key=lambda found: found[0].cost)

    def __call__(self, z: Tensor, count: int) -> Tensor:
        """Numbers (n, count) int64 of prototypes with high scores, of z (n, d) float32; -1 where too few were met."""
        with _threads_of_faiss(self._faiss, self._threads):
            _, found = self._index.search(torch.nn.functional.pad(z, (0, 1)).numpy(), count)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.int64))

    def _measured(self, kind: str, sample: Tensor, best: Tensor, recall: float) -> tuple[Choice, Any]:
        """The index of a kind at the least effort that reaches `recall` on the sample, else at its greatest."""
        index, statistics = self._ivf() if kind == "ivf" else self._hnsw()
        self._index = index
        for effort in IVF_EFFORTS if kind == "ivf" else HNSW_EFFORTS:
            if kind == "ivf":
                index.nprobe = effort
            else:
                index.hnsw.efSearch = effort
            statistics.reset()
            found = self(sample, 1)[:, 0]
            distances = statistics.ndis / len(sample) + (index.nlist if kind == "ivf" else 0)
            reached = float((found == best).double().mean())
            choice = Choice(kind, effort, reached, COST[kind] * distances / len(self._scores))
            if reached >= recall:
                break
        return choice, index

    def _ivf(self) -> tuple[Any, Any]:
        with _threads_of_faiss(self._faiss, 1):  # the same lists everywhere
            centres, _ = cells(self._vectors, min(len(self._vectors), 2 * isqrt(len(self._vectors))))
            dim = self._vectors.shape[1]
            quantizer = self._faiss.IndexFlatL2(dim)
            quantizer.add(centres.numpy())
            index = self._faiss.IndexIVFFlat(quantizer, dim, len(centres), self._faiss.METRIC_L2)
            index.add(self._vectors.numpy())
        return index, self._faiss.cvar.indexIVF_stats

    def _hnsw(self) -> tuple[Any, Any]:
        index = self._faiss.IndexHNSWFlat(self._vectors.shape[1], HNSW_LINKS)
        with _threads_of_faiss(self._faiss, 1):  # the same graph everywhere
            index.add(self._vectors.numpy())
        return index, self._faiss.cvar.hnsw_stats


class NearestRows:
    """An index of rows, on the CPU, in which the nearest ones are found.

    Exact up to `FEW_ROWS`; above that an inverted file, at the least effort that finds `GOOD_RECALL` of a sample's.

    Parameters
    ----------
    rows : Tensor (m, d) of float32
    threads : int
        Of building and of each search.
    """

    def __init__(self, rows: Tensor, threads: int):
        self._faiss, self._threads, self._count = _faiss(), threads, len(rows)
        exact = self._faiss.IndexFlatL2(rows.shape[1])
        exact.add(rows.numpy())
        self._index = exact
        if len(rows) > FEW_ROWS:
            with _threads_of_faiss(self._faiss, threads):
                self._index = self._inverted(rows, exact)

    def __call__(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Squared distances (n, k) and positions (n, k) of the k = min(count, m) nearest rows, the nearest first."""
        with _threads_of_faiss(self._faiss, self._threads):
            squares, found = self._index.search(queries.numpy(), min(count, self._count))
        return torch.from_numpy(squares), torch.from_numpy(found)

    def _inverted(self, rows: Tensor, exact: Any) -> Any:
        lists = 2 * isqrt(len(rows))
        index = self._faiss.IndexIVFFlat(
            self._faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], lists, self._faiss.METRIC_L2
        )
        index.train(rows[:: max(1, len(rows) // (64 * lists))].contiguous().numpy())
        index.add(rows.numpy())
        sample = rows[:: max(1, len(rows) // SAMPLE_ROWS)][:SAMPLE_ROWS].contiguous().numpy()
        _, wanted = exact.search(sample, SAMPLE_NEIGHBOURS)
        for index.nprobe in IVF_EFFORTS:
            _, found = index.search(sample, SAMPLE_NEIGHBOURS)
            same = (found[:, :, None] == wanted[:, None]).any(2)
            if same.mean() >= GOOD_RECALL:
                return index
        return exact


@contextmanager
def _threads_of_faiss(faiss: Any, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)  # FAISS and torch may share one OpenMP runtime


def faiss_version() -> str | None:
    """None where FAISS is not installed."""
    return str(_faiss().__version__) if importlib.util.find_spec("faiss") is not None else None


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError("an index of prototypes needs FAISS: install raydkm[cpu] or raydkm[gpu], or pass index flat")
    import faiss

    return faiss


def check_index(index: str, recall: float) -> None:
    """Refuse, with a `ConfigError`, an index or a recall that there is not."""
    if index not in INDEXES:
        raise ConfigError(f"index {index!r}: must be one of {', '.join(INDEXES)}")
    if not 0 < recall <= 1:
        raise ConfigError(f"recall {recall:g}: must be above 0 and at most 1")


def _augmented(scores: Scores) -> Tensor:
    """[theta_k, e_k] (K, d + 1) float32, see `NearestPrototypes`."""
    theta = scores.prototypes.double()
    square = -theta.square().sum(1) - 2 * scores.bias.double()
    return torch.cat((theta, (square - square.min()).sqrt()[:, None]), dim=1).float()


def _between(prototypes: Tensor) -> Tensor:
    """Points half way between some prototypes and others, as rows to measure with where there are none."""
    count = min(SAMPLE_ROWS, len(prototypes))
    some = torch.arange(count) * len(prototypes) // count
    return (prototypes[some] + prototypes[(some + 1) % len(prototypes)]) / 2
