from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from raydkm.errors import InputError, ModelError
from raydkm.features.maps import (
    KINDS,
    FourierFeatures,
    KernelToLandmarks,
    Map,
    Projected,
    Scaled,
    Unit,
    chain,
    gaussian,
    map_of,
)

DIM, OUT = 5, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


#: One map of each kind, by a stage that has it.
MAPS: dict[str, Map] = {
    "standardize": Scaled(normal(DIM), normal(DIM, seed=1)),
    f"pca:{OUT}": Projected(normal(DIM), normal(DIM, OUT, seed=1)),
    f"rff:{OUT}": FourierFeatures(normal(DIM, OUT), normal(OUT, seed=1)),
    f"nystrom:{OUT}": KernelToLandmarks(normal(OUT, DIM), normal(OUT, OUT, seed=1), number(1.5)),
    "unit": Unit(number(DIM)),
}

every_map = pytest.mark.parametrize(("stage", "map_"), MAPS.items(), ids=list(MAPS))


def test_every_kind_is_tested() -> None:
    assert {type(map_) for map_ in MAPS.values()} == set(KINDS.values())


@every_map
def test_a_row_has_the_same_features_alone_and_among_others(stage: str, map_: Map) -> None:
    x = normal(2000, DIM, seed=2).float()
    together = map_(x)
    assert (together.dtype, tuple(together.shape)) == (torch.float32, (2000, map_.dim))
    for rows in (slice(0, 1), slice(7, 40), slice(1023, 1026), slice(1999, 2000)):
        assert torch.equal(map_(x[rows]), together[rows])
    assert map_(x[:0]).shape == (0, map_.dim)


@every_map
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_the_dtype_of_rows_does_not_matter_and_they_are_not_written_to(
    stage: str, map_: Map, dtype: torch.dtype
) -> None:
    x = torch.arange(4 * DIM).reshape(4, DIM).to(dtype)
    before = x.clone()
    assert torch.equal(map_(x), map_(x.float()))
    assert torch.equal(x, before)


@every_map
def test_a_map_is_made_again_of_its_tensors(stage: str, map_: Map) -> None:
    again = map_of(stage, load(save(map_.tensors())))
    x = normal(10, DIM, seed=3)
    assert (type(again), again.input_dim, again.dim) == (type(map_), DIM, map_.dim)
    assert torch.equal(again(x), map_(x))


@every_map
def test_rows_of_another_dimension_are_refused(stage: str, map_: Map) -> None:
    with pytest.raises(InputError, match=f"vectors of {DIM + 1} dimensions, where {DIM} are mapped to {map_.dim}"):
        map_(normal(2, DIM + 1))


@every_map
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "dtype", "nan", "empty"])
def test_damaged_tensors_are_refused(stage: str, map_: Map, damage: str) -> None:
    tensors = map_.tensors()
    name = list(tensors)[-1]
    damages: dict[str, Callable[[], Tensor]] = {
        "shape": lambda: tensors[name][None],
        "dtype": lambda: tensors[name].float(),
        "nan": lambda: tensors[name] * torch.nan,
        "empty": lambda: tensors[name][..., None][..., :0],
    }
    if damage == "missing":
        del tensors[name]
    else:
        tensors["code" if damage == "unknown" else name] = damages.get(damage, lambda: normal(1))()
    with pytest.raises(ModelError, match=f"map {stage}: "):
        map_of(stage, tensors)


@pytest.mark.parametrize(
    ("stage", "tensors"),
    [
        ("pca:4", MAPS[f"pca:{OUT}"].tensors()),  # gives 3
        ("whiten", MAPS[f"pca:{OUT}"].tensors()),  # gives as many as it takes
        ("standardize", {"shift": normal(DIM), "scale": normal(DIM + 1)}),
        ("unit", {"columns": number(2.5)}),
        ("unit", {"columns": number(-1)}),
        ("nystrom:3", MAPS["nystrom:3"].tensors() | {"width": number(0)}),
        ("neighbours:2", {}),
        ("center,unit", {}),
        ("os.system", {}),
    ],
)
def test_tensors_that_are_no_map_of_the_stage_are_refused(stage: str, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError, match="map"):
        map_of(stage, tensors)


def test_unit_rows_have_length_one_and_zero_stays() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [-1e15, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert torch.equal(Unit(number(2))(x), expected)


def test_a_chain_applies_one_map_after_the_other() -> None:
    x, first, then = normal(6, DIM), MAPS[f"pca:{OUT}"], Unit(number(OUT))
    assert torch.equal(chain([first, then])(x), then(first(x)))
    assert chain([])(x) is x


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_kernel_is_scikit_learns_wherever_the_rows_lie(offset: float) -> None:
    x, y = normal(20, DIM), normal(8, DIM, seed=1)
    found = gaussian(x + offset, y + offset, width=1.7)
    expected = rbf_kernel(x, y, gamma=1 / (2 * 1.7**2))
    np.testing.assert_allclose(found, expected, rtol=1e-12 if offset == 0 else 1e-8)


def test_fourier_features_are_near_to_the_kernel_as_scikit_learns_are(rng: np.random.Generator) -> None:
    x, dim = rng.standard_normal((50, DIM)), 4000
    frequencies, phases = rng.standard_normal((DIM, dim)), 2 * np.pi * rng.random(dim)
    ours = FourierFeatures(torch.from_numpy(frequencies), torch.from_numpy(phases))(torch.from_numpy(x)).numpy()
    theirs = RBFSampler(gamma=0.5, n_components=dim, random_state=0).fit_transform(x)
    exact = rbf_kernel(x, gamma=0.5)
    ours_off, theirs_off = (np.sqrt(np.square(f @ f.T - exact).mean()) for f in (ours, theirs))
    assert max(ours_off, theirs_off) < 0.02  # of the order of 1 / sqrt(dim)
