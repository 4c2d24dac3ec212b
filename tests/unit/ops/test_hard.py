from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydkm.ops.hard import MIN_SCREENED, HardAssignment
from raydkm.ops.scores import Scores

CPU = torch.device("cpu")


def scores_of(prototypes: Tensor, log_s: Tensor | None = None, temperature: float = 0.0) -> Scores:
    log_s = torch.zeros(len(prototypes), dtype=torch.float64) if log_s is None else log_s
    return Scores.of(prototypes.double(), log_s, temperature, torch.float32, CPU)


def both(scores: Scores, z: Tensor) -> tuple[Tensor, Tensor]:
    screened = HardAssignment(scores, screen=True)
    assert screened._screened, "the case is too small to be screened"
    return screened(z), HardAssignment(scores, screen=False)(z)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def scattered(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return normal(g, n, d), normal(g, k, d)


def duplicated(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    half = normal(g, k // 2 + 1, d)
    return normal(g, n, d), torch.cat((half, half))[:k]


def one_ulp_apart(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    half = normal(g, k // 2 + 1, d)
    return normal(g, n, d), torch.cat((half, torch.nextafter(half, torch.tensor(torch.inf))))[:k]


def rows_on_prototypes(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    prototypes = normal(g, k, d)
    return prototypes[torch.randint(k, (n,), generator=g)], prototypes


def exact_ties(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    prototypes = torch.randint(-1, 2, (k, d), generator=g).float()
    return torch.randint(-2, 3, (n, d), generator=g).float() / 2, prototypes


def midway(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    prototypes = normal(g, k, d)
    pairs = torch.randint(k, (2, n), generator=g)
    return (prototypes[pairs[0]] + prototypes[pairs[1]]) / 2, prototypes


def huge(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return 1e14 * normal(g, n, d), 1e14 * normal(g, k, d)


def huge_and_small_rows(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    magnitude = 10.0 ** torch.randint(-6, 7, (n, 1), generator=g)
    return magnitude * normal(g, n, d), normal(g, k, d)


def one_huge_prototype(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    prototypes = normal(g, k, d)
    prototypes[0] *= 1e6
    return normal(g, n, d), prototypes


def denormal(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return 1e-40 * normal(g, n, d), 1e-40 * normal(g, k, d)


def square_underflows(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return 1e-20 * normal(g, n, d), 1e-20 * normal(g, k, d)


def far_offset(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return 1000 + normal(g, n, d), 1000 + normal(g, k, d)


def tight_bundle(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return normal(g, n, d), normal(g, 1, d) + 1e-5 * normal(g, k, d)


def all_zero(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, d), torch.zeros(k, d)


CASES = [
    scattered,
    duplicated,
    one_ulp_apart,
    rows_on_prototypes,
    exact_ties,
    midway,
    huge,
    huge_and_small_rows,
    one_huge_prototype,
    denormal,
    square_underflows,
    far_offset,
    tight_bundle,
    all_zero,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1, 2, 7, 16, 33, 300, 1024]),
    d=st.sampled_from([1, 2, 3, 16, 65, 300]),
    k=st.sampled_from([64, 65, 100, 257]),
)
def test_screening_in_bf16_changes_no_label(case, seed: int, n: int, d: int, k: int) -> None:
    z, prototypes = case(torch.Generator().manual_seed(seed), n, d, k)
    screened, full = both(scores_of(prototypes), z)
    assert torch.equal(screened, full)


@given(seed=st.integers(0, 2**31), temperature=st.floats(1e-3, 1e3))
def test_screening_changes_no_label_with_balance(seed: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    z, prototypes = scattered(g, 200, 20, 96)
    log_s = 5 * torch.randn(96, generator=g, dtype=torch.float64)
    screened, full = both(scores_of(prototypes, log_s, temperature), z)
    assert torch.equal(screened, full)


@given(seed=st.integers(0, 2**31), d=st.sampled_from([1, 2, 30]))
def test_the_screening_bound_covers_every_score(seed: int, d: int) -> None:
    z, prototypes = scattered(torch.Generator().manual_seed(seed), 100, d, 80)
    scores = scores_of(prototypes)
    assign = HardAssignment(scores, screen=True)
    low = z.to(torch.bfloat16)
    approximate = torch.mm(low, assign._low_t).float() + scores.bias
    exact = z.double() @ scores.prototypes.double().T + scores.bias.double()
    assert bool(((approximate - exact).abs() <= assign._error(z, low)[:, None]).all())


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("clusters", [1, 5, MIN_SCREENED, 200])
def test_labels_are_the_nearest_prototypes(screen: bool, clusters: int, rng: np.random.Generator) -> None:
    z, prototypes = rng.standard_normal((500, 12)), rng.standard_normal((clusters, 12))
    labels = HardAssignment(scores_of(torch.from_numpy(prototypes)), screen=screen)(torch.from_numpy(z).float())
    distances = np.square(z[:, None] - prototypes).sum(2)
    chosen = distances[np.arange(500), labels.numpy()]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-5, atol=1e-5)


def test_duplicated_prototypes_leave_their_rows_to_the_first() -> None:
    prototypes = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).repeat(30, 1)
    for screen in (False, True):
        labels = HardAssignment(scores_of(prototypes), screen=screen)(prototypes)
        assert labels.tolist() == [k % 3 for k in range(90)]


def test_balance_scalings_move_labels_as_prices_do(rng: np.random.Generator) -> None:
    z, prototypes, log_s = rng.standard_normal((300, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)
    scores = scores_of(torch.from_numpy(prototypes), torch.from_numpy(log_s), temperature=2.0)
    labels = HardAssignment(scores, screen=False)(torch.from_numpy(z).float()).numpy()
    prices = np.square(z[:, None] - prototypes).sum(2) - 2.0 * log_s
    np.testing.assert_allclose(prices[np.arange(300), labels], prices.min(1), atol=1e-5)
