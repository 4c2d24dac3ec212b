from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from raydkm.ops import screen
from raydkm.ops.frame import Frame, RowTile
from raydkm.ops.hard import HardAssignment
from raydkm.ops.leading import Directions
from raydkm.ops.scores import Scores
from raydkm.ops.screen import SCREENS, FullScreen, Int8Screen, LeadingScreen, Screen


@pytest.fixture(autouse=True)
def exact_products_of_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without exact 8-bit products, whole numbers of float64 stand in for them."""
    if not (screen.amx.available() or screen.multiplies_int8()):
        monkeypatch.setattr(screen, "multiplies_int8", lambda: True)
        monkeypatch.setattr(torch, "_int_mm", lambda a, b, out: out.copy_(a.double() @ b.double()))


def scores_of(prototypes: Tensor, log_s: Tensor | None = None, temperature: float = 0.0) -> Scores:
    log_s = torch.zeros(len(prototypes), dtype=torch.float64) if log_s is None else log_s
    return Scores.of(prototypes.double(), log_s, temperature, Frame.identity("euclidean", prototypes.shape[1]))


def reference(scores: Scores, z: Tensor) -> Tensor:
    """The first of the prototypes of the least cost, by differences in float64."""
    costs = scores.costs
    return (sequential_squares(z.double().numpy(), costs.prototypes.numpy()) - costs.offset).argmin(1)


def sequential_squares(x: NDArray, centres: NDArray) -> Tensor:
    """Squared distances (n, K), each added up as `raydkm.ops.cost` documents: in eight sums, then the rest."""
    whole = x.shape[1] // 8 * 8
    lanes = np.zeros((len(x), len(centres), 8))
    for start in range(0, whole, 8):
        part = slice(start, start + 8)
        lanes += (x[:, None, part] - centres[None, :, part]) ** 2
    while lanes.shape[2] > 1:
        lanes = lanes[:, :, ::2] + lanes[:, :, 1::2]
    total = lanes[:, :, 0]
    for j in range(whole, x.shape[1]):
        total = total + (x[:, None, j] - centres[None, :, j]) ** 2
    return torch.from_numpy(total)


def screen_of(assign: HardAssignment) -> Screen:
    assert assign._chosen is not None
    return assign._chosen.screen


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


PRECISIONS = ["fp32", "bf16", "int8"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1, 2, 7, 16, 33, 300, 1024]),
    d=st.sampled_from([1, 2, 3, 16, 65, 300]),
    k=st.sampled_from([1, 2, 10, 64, 65, 100, 600]),
)
def test_labels_are_those_of_float64(case, precision: str, seed: int, n: int, d: int, k: int) -> None:
    z, prototypes = case(torch.Generator().manual_seed(seed), n, d, k)
    scores = scores_of(prototypes)
    assert torch.equal(HardAssignment(scores, precision)(z), reference(scores, z))


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(1e-3, 1e3))
def test_labels_with_balance_are_those_of_float64(precision: str, seed: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    z, prototypes = scattered(g, 200, 20, 96)
    log_s = 5 * torch.randn(96, generator=g, dtype=torch.float64)
    scores = scores_of(prototypes, log_s, temperature)
    assert torch.equal(HardAssignment(scores, precision)(z), reference(scores, z))


@pytest.mark.parametrize("case", [scattered, exact_ties, duplicated, tight_bundle], ids=lambda case: case.__name__)
def test_tensor_operations_decide_as_the_kernel_does(case) -> None:  # they are what a GPU computes with
    z, prototypes = case(torch.Generator().manual_seed(3), 500, 20, 150)
    for precision in ("fp32", "bf16"):
        assign = HardAssignment(scores_of(prototypes), precision)
        assign._native = False
        assert torch.equal(assign(z), reference(assign._scores, z))


def test_a_screen_that_leaves_too_many_candidates_is_given_up() -> None:
    z, prototypes = tight_bundle(torch.Generator().manual_seed(0), 300, 16, 200)
    assign = HardAssignment(scores_of(prototypes), "int8")
    assert isinstance(assign._first_choice(RowTile.at_origin(z)).screen, Int8Screen)
    assign(z)
    assert isinstance(screen_of(assign), FullScreen)


def test_a_screen_is_given_up_for_rows_with_more_candidates_than_are_kept() -> None:
    g = torch.Generator().manual_seed(0)
    assign = HardAssignment(scores_of(normal(g, 12_000, 16)), "int8")
    assign(1e-4 * normal(g, 64, 16))  # the step of rows is theirs
    z = normal(g, 64, 16)
    assert torch.equal(assign(z), reference(assign._scores, z))
    assert isinstance(screen_of(assign), FullScreen)


def test_8_bits_are_not_used_where_their_products_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "multiplies_int8", lambda: False)
    monkeypatch.setattr(screen.amx, "available", lambda: False)
    assign = HardAssignment(scores_of(torch.randn(5, 7)), "int8")
    assign(torch.randn(3, 7))
    assert isinstance(screen_of(assign), FullScreen)


@pytest.mark.parametrize("leads", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.sampled_from([2, 3, 30, 300]))
def test_no_score_is_above_its_bound(case, precision: str, leads: bool, seed: int, d: int) -> None:
    z, prototypes = case(torch.Generator().manual_seed(seed), 100, d, 80)
    scores, kind = scores_of(prototypes), SCREENS[precision]
    if leads:
        chosen: Screen = LeadingScreen(scores, z, Directions.of(z).first((d + 1) // 2), kind)
    else:
        chosen = kind(scores, z)
    found = chosen(chosen.rows(z), chosen.columns(torch.arange(80)))
    exact = z.double() @ scores.prototypes.double().T + scores.bias.double()
    bound = (found.approximate.double() + found.bias.double())[:, :80] * found.unit
    of_left, of_norm, absolute = found.error
    error = of_left * found.left.double() + of_norm * found.norm.double() + absolute
    assert bool((exact <= bound + error[:, None] + 1e-35).all())
    assert bool((found.norm.double() >= torch.linalg.vector_norm(z.double(), dim=1) * (1 - 1e-5)).all())


def decaying(g: torch.Generator, n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    """Rows around prototypes, whose later columns vary less."""
    scale = torch.arange(1, d + 1) ** -0.75
    prototypes = normal(g, k, d) * scale
    return prototypes[torch.randint(k, (n,), generator=g)] + 0.5 * normal(g, n, d) * scale, prototypes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [*CASES, decaying], ids=lambda case: case.__name__)
def test_directions_change_no_label(case, precision: str) -> None:
    z, prototypes = case(torch.Generator().manual_seed(1), 400, 256, 1500)
    assign = HardAssignment(scores_of(prototypes), precision, Directions.of(z))
    assert torch.equal(assign(z), reference(assign._scores, z))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_directions_are_taken_where_they_tell_prototypes_apart(precision: str) -> None:
    g = torch.Generator().manual_seed(1)
    z, prototypes = decaying(g, 400, 512, 4000)
    assign = HardAssignment(scores_of(prototypes), precision, Directions.of(z))
    assign(z)
    assert isinstance(screen_of(assign), LeadingScreen)
    none = HardAssignment(scores_of(normal(g, 4000, 512)), precision, Directions.of(normal(g, 400, 512)))
    none(normal(g, 400, 512))
    assert not isinstance(screen_of(none), LeadingScreen)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("clusters", [1, 5, 64, 200])
def test_labels_are_the_nearest_prototypes(precision: str, clusters: int, rng: np.random.Generator) -> None:
    z, prototypes = rng.standard_normal((500, 12)), rng.standard_normal((clusters, 12))
    labels = HardAssignment(scores_of(torch.from_numpy(prototypes)), precision)(torch.from_numpy(z).float())
    distances = np.square(z[:, None] - prototypes).sum(2)
    chosen = distances[np.arange(500), labels.numpy()]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-5, atol=1e-5)


def test_duplicated_prototypes_leave_their_rows_to_the_first() -> None:
    prototypes = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).repeat(30, 1)
    for precision in PRECISIONS:
        labels = HardAssignment(scores_of(prototypes), precision)(prototypes)
        assert labels.tolist() == [k % 3 for k in range(90)]


def test_balance_scalings_move_labels_as_prices_do(rng: np.random.Generator) -> None:
    z, prototypes, log_s = rng.standard_normal((300, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)
    scores = scores_of(torch.from_numpy(prototypes), torch.from_numpy(log_s), temperature=2.0)
    labels = HardAssignment(scores, "fp32")(torch.from_numpy(z).float()).numpy()
    prices = np.square(z[:, None] - prototypes).sum(2) - 2.0 * log_s
    np.testing.assert_allclose(prices[np.arange(300), labels], prices.min(1), atol=1e-5)


@pytest.mark.parametrize("clusters", [2, 100])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_that_are_not_finite_lead_to_no_label_that_there_is_not(precision: str, clusters: int) -> None:
    g = torch.Generator().manual_seed(0)
    labels = HardAssignment(scores_of(1e20 * torch.randn(clusters, 5, generator=g)), precision)(torch.randn(300, 5))
    assert int(labels.min()) >= 0
    assert int(labels.max()) < clusters
