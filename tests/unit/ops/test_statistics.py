from __future__ import annotations

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydkm.data.source import RowSource
from raydkm.ops.batch import BATCH_ROWS, Batch
from raydkm.ops.exact import Field, Statistics
from raydkm.ops.frame import Frame
from raydkm.ops.scores import Scores
from raydkm.ops.statistics import Bounds, Local, cluster_fields, hard_statistics, soft_statistics

CPU = torch.device("cpu")
ROWS, DIM = 3 * BATCH_ROWS + 500, 5


class Setting:
    """Rows in four canonical batches, prototypes, and the closures that add a batch."""

    def __init__(self, clusters: int = 6, dtype: torch.dtype = torch.float32, weighted: bool = True):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((ROWS, DIM)).astype(np.float32)
        self.weight = rng.random(ROWS) * 3 if weighted else None
        self.source = RowSource.from_array(self.x, self.weight)
        self.frame = Frame.identity("euclidean", DIM, dtype)
        log_s = torch.from_numpy(0.5 * rng.standard_normal(clusters))
        prototypes = torch.from_numpy(rng.standard_normal((clusters, DIM)))
        self.scores = Scores.of(prototypes, log_s, 1.5, Frame.identity("euclidean", prototypes.shape[1], dtype))
        self.bound = torch.from_numpy(np.abs(self.x).max(0)).double()
        self.fields = cluster_fields(clusters, Bounds(ROWS, 3.0, self.bound))

    def local(self, kind: str) -> Local:
        if kind == "soft":
            return soft_statistics(self.scores, self.frame, bound=self.bound, precision="auto")
        if kind == "soft-bf16":
            return soft_statistics(self.scores, self.frame, bound=self.bound, precision="bf16")
        return hard_statistics(self.scores, self.frame, precision="int8" if kind == "hard-screened" else "fp32")

    def sum(self, kind: str, batches: list[Batch]) -> Statistics:
        into = Statistics(self.fields)
        local = self.local(kind)
        for batch in batches:
            local(batch, into)
        return into

    def batches(self) -> list[Batch]:
        return list(self.source.batches())

    def posteriors(self) -> np.ndarray:
        theta, bias = self.scores.prototypes.double().numpy(), self.scores.bias.double().numpy()
        logits = 2 / 1.5 * (self.x.astype(np.float64) @ theta.T + bias)
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return exp / exp.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def few() -> Setting:
    return Setting()


@pytest.fixture(scope="module")
def many() -> Setting:
    return Setting(clusters=257)


@pytest.mark.parametrize("kind", ["hard", "hard-screened", "soft", "soft-bf16"])
@pytest.mark.parametrize("size", ["few", "many"])
@settings(max_examples=5)
@given(order=st.permutations(range(4)), cut=st.integers(0, 4))
def test_any_split_in_any_order_adds_up_to_the_whole_bit_for_bit(few, many, size, kind, order, cut) -> None:
    setting = few if size == "few" else many
    batches = setting.batches()
    whole = setting.sum(kind, batches)
    shuffled = [batches[i] for i in order]
    parts = setting.sum(kind, shuffled[:cut]) + setting.sum(kind, shuffled[cut:])
    assert torch.equal(parts.buffer, whole.buffer)
    assert whole["rows"] == ROWS


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_where_a_batch_lies_does_not_matter(few, kind: str) -> None:
    whole = few.sum(kind, few.batches())
    apart = []
    for batch in few.batches():
        rows = batch.rows.clone()  # memory of its own, at position 0, as on another worker
        apart.append(few.sum(kind, [Batch(0, rows, batch.weight.clone())]))
    assert torch.equal(reduce(add, apart).buffer, whole.buffer)


@pytest.mark.parametrize("size", ["few", "many"])
def test_hard_sums_over_few_prototypes_do_not_depend_on_rounding_each_row(few, many, size: str) -> None:
    setting = few if size == "few" else many
    found = setting.sum("hard", setting.batches())
    theta, bias = setting.scores.prototypes.double().numpy(), setting.scores.bias.double().numpy()
    labels = (setting.x.astype(np.float64) @ theta.T + bias).argmax(1)
    member = np.eye(len(theta))[labels] * setting.weight[:, None]
    # a handful of rows may lie within float32 rounding of a boundary
    np.testing.assert_allclose(found["counts"].numpy(), member.sum(0), atol=10)
    assert float(found["counts"].sum()) == pytest.approx(setting.weight.sum(), rel=1e-9)
    np.testing.assert_allclose(found["sums"].sum(0).numpy(), setting.weight @ setting.x, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found["sums"].numpy(), member.T @ setting.x, atol=20)


@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    [(torch.float64, "soft", 1e-11), (torch.float32, "soft", 1e-5), (torch.float32, "soft-bf16", 1e-3)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_statistics_are_those_of_float64(dtype, kind: str, tolerance: float, weighted: bool) -> None:
    setting = Setting(dtype=dtype, weighted=weighted)
    found, q = setting.sum(kind, setting.batches()), setting.posteriors()
    weight = setting.weight if weighted else np.ones(ROWS)
    target = q * weight[:, None]
    np.testing.assert_allclose(found["counts"].numpy(), target.sum(0), rtol=tolerance)
    np.testing.assert_allclose(found["sums"].numpy(), target.T @ setting.x, atol=tolerance * ROWS)
    entropy = -(target * np.log(q)).sum()
    assert float(found["entropy"]) == pytest.approx(entropy, rel=max(tolerance, 1e-8) if kind == "soft" else 1e-5)


def test_labels_are_reported_once_for_each_row_at_its_position(few) -> None:
    seen = torch.full((ROWS,), -1)

    def keep(first: int, labels: torch.Tensor) -> None:
        assert bool((seen[first : first + len(labels)] == -1).all())
        seen[first : first + len(labels)] = labels

    local = hard_statistics(few.scores, few.frame, precision="fp32", on_labels=keep)
    into = Statistics(few.fields)
    for batch in reversed(few.batches()):
        local(batch, into)
    theta, bias = few.scores.prototypes, few.scores.bias
    expected = (torch.from_numpy(few.x) @ theta.T + bias).argmax(1)
    assert float((seen == expected).double().mean()) > 0.999
    weights = np.bincount(seen.numpy(), weights=few.weight, minlength=6)
    np.testing.assert_allclose(into["counts"].numpy(), weights, rtol=1e-9)


def exponents(fields: tuple[Field, ...]) -> dict[str, int]:
    return {field.name: int(field.grid.exponent.min()) for field in fields}


def test_the_grids_hold_ten_to_the_twelfth_rows_and_still_resolve_them() -> None:
    fields = exponents(cluster_fields(1000, Bounds(10**12, 1.0, torch.full((768,), 100.0))))
    assert 10**12 * 100 * 2.0 ** fields["sums"] < 2**62
    assert 10**12 * (math.log(1000) + 1) * 2.0 ** fields["entropy"] < 2**62
    assert 10**12 * 2.0 ** fields["counts"] < 2**62
    assert min(fields["counts"], fields["sums"], fields["entropy"]) >= 10
    assert fields["rows"] == 0


def test_counts_and_sums_stay_exact_beyond_two_to_the_24th() -> None:
    rows = 5 * BATCH_ROWS
    x = np.random.default_rng(0).integers(-8, 8, size=(rows, 2)).astype(np.float32)
    weight = np.full(rows, 4097.0)  # 2**26.3 altogether, at which a float32 count has long stood still
    bound = torch.full((2,), 8.0, dtype=torch.float64)
    frame = Frame.identity("euclidean", 2)
    scores = Scores.of(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 1.0, frame)
    source = RowSource.from_array(x, weight)
    into = Statistics(cluster_fields(1, Bounds(rows, 4097.0, bound)))
    local = hard_statistics(scores, frame, precision="fp32")
    for batch in source.batches():
        local(batch, into)
    assert into["counts"].item() == 4097 * rows
    np.testing.assert_array_equal(into["sums"][0].numpy(), 4097 * x.astype(np.float64).sum(0))
