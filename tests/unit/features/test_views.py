from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from raydkm.errors import ConfigError
from raydkm.features.draws import Draws
from raydkm.features.views import VIEWS, ImageView, SeriesView, VectorView, View

#: Every kind with all of its changes, and rows for it.
CASES: list[tuple[View, tuple[int, ...]]] = [
    (ImageView(cutout=0.3), (1, 14, 14)),
    (ImageView(cutout=0.3, flip=True), (3, 12, 17)),
    (ImageView(), (2, 1, 5)),
    (VectorView(masking=0.2, scale=torch.rand(9)), (9,)),
    (SeriesView(), (3, 40)),
    (SeriesView(), (1, 1)),
]

#: An image view that changes nothing; the tests of one change set its amplitude.
STILL = ImageView(
    rotation=0, scale=0, stretch=0, shear=0, translation=0, thickness=0, brightness=0, contrast=0, saturation=0
)


def rows_of(shape: tuple[int, ...], rows: int = 30) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1))


def draws_of(rows: Tensor, salt: int = 0) -> Draws:
    return Draws(torch.arange(len(rows)), salt)


def centre_of_mass(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column (n,) of the mean pixel of one-channel images, from their middle."""
    weights = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    rows, columns = (torch.arange(size) - (size - 1) / 2 for size in images.shape[2:])
    return (weights.sum(2) * rows).sum(1), (weights.sum(1) * columns).sum(1)


@pytest.mark.parametrize(("view", "shape"), CASES)
def test_a_view_keeps_shape_and_dtype_and_leaves_the_rows_alone(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape).requires_grad_()
    before = rows.detach().clone()
    seen = view(rows, draws_of(rows))
    assert seen.shape == rows.shape
    assert seen.dtype == torch.float32
    assert torch.isfinite(seen).all()
    assert not seen.requires_grad
    assert torch.equal(rows, before)
    assert shape == (1, 1) or not torch.allclose(seen, rows, atol=1e-3)


@pytest.mark.parametrize(("view", "shape"), CASES)
def test_without_strength_a_view_is_the_row(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape)
    assert torch.equal(replace(view, strength=0)(rows, draws_of(rows)), rows)


@pytest.mark.parametrize(("view", "shape"), CASES)
def test_a_view_becomes_the_row_as_strength_falls(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape)
    slight = replace(view, strength=1e-6, **({"flip": False} if isinstance(view, ImageView) else {}))
    torch.testing.assert_close(slight(rows, draws_of(rows)), rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("view", "shape"), CASES)
def test_any_strength_gives_finite_rows(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape)
    assert torch.isfinite(replace(view, strength=1e3)(rows, draws_of(rows))).all()


@pytest.mark.parametrize(("view", "shape"), CASES)
@given(data=st.data())
def test_a_row_has_the_same_view_in_any_batch(view: View, shape: tuple[int, ...], data: st.DataObject) -> None:
    rows = rows_of(shape, rows=7)
    together = view(rows, Draws(torch.arange(7), 3))
    order = data.draw(st.permutations(range(7)))
    cut = data.draw(st.integers(0, 7))
    for part in (order[:cut], order[cut:]):
        keys = torch.tensor(part, dtype=torch.int64)
        torch.testing.assert_close(view(rows[keys], Draws(keys, 3)), together[keys], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("view", "shape"), [case for case in CASES if case[1] != (1, 1)])
def test_another_salt_or_key_gives_another_view(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape, rows=1).expand(20, *shape)
    views = torch.cat([view(rows, draws_of(rows, salt)) for salt in (0, 1)]).flatten(1)
    assert len(torch.unique(views, dim=0)) == 40


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_keeps_its_range(channels: int) -> None:
    images = 0.2 + 0.5 * rows_of((channels, 10, 10))
    seen = ImageView(cutout=0.3, strength=3)(images, draws_of(images))
    assert seen.min() >= 0
    assert (seen.amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 12, 30)])
def test_an_image_turns_about_its_middle_as_far_as_said(shape: tuple[int, ...]) -> None:
    image = torch.zeros(200, *shape)
    middle = shape[1] // 2, shape[2] // 2
    image[:, 0, middle[0] - 1 : middle[0] + 1, middle[1] + 2 : middle[1] + 4] = 1  # three pixels to the right
    seen = replace(STILL, rotation=30)(image, draws_of(image))
    down, right = centre_of_mass(seen)
    angles = torch.rad2deg(torch.atan2(down, right))
    torch.testing.assert_close(torch.hypot(down, right), torch.full((200,), 3.0), rtol=0, atol=0.1)
    assert 25 < angles.max() < 31
    assert -31 < angles.min() < -25


def test_verticals_lean_as_far_as_said() -> None:
    image = torch.zeros(200, 1, 21, 21)
    image[:, 0, 4:17, 10] = 1
    seen = replace(STILL, shear=0.3)(image, draws_of(image))[:, 0, 4:17]
    columns = (seen * torch.arange(-10.0, 11)).sum(2) / seen.sum(2)
    heights = torch.arange(-6.0, 7)
    slopes = columns @ heights / heights.square().sum()
    torch.testing.assert_close(columns, slopes[:, None] * heights, rtol=0, atol=0.1)
    assert 0.27 < slopes.max() < 0.31
    assert -0.31 < slopes.min() < -0.27


def test_an_image_shifts_as_far_as_said() -> None:
    image = functional.pad(torch.ones(200, 1, 2, 2), (9, 9, 4, 4))  # 10 high, 20 wide
    down, right = centre_of_mass(replace(STILL, translation=0.2)(image, draws_of(image)))
    for shift, most in ((down, 2), (right, 4)):
        assert 0.9 * most < shift.max() <= most + 1e-3
        assert -most - 1e-3 <= shift.min() < -0.9 * most


def test_an_image_changes_its_size_as_far_as_said() -> None:
    image = functional.pad(torch.ones(200, 1, 8, 8), (6, 6, 6, 6))
    area = replace(STILL, scale=0.2)(image, draws_of(image)).sum((1, 2, 3)) / 64
    assert area.min() == pytest.approx(0.8**2, abs=0.05)
    assert area.max() == pytest.approx(1.2**2, abs=0.05)
    stretched = replace(STILL, stretch=0.2)(image, draws_of(image))
    torch.testing.assert_close(stretched.sum((1, 2, 3)) / 64, torch.ones(200), rtol=0, atol=0.03)


def test_turning_and_leaning_keep_areas() -> None:
    image = functional.pad(torch.ones(200, 1, 8, 8), (6, 6, 6, 6))
    seen = replace(STILL, rotation=45, shear=0.3)(image, draws_of(image))
    torch.testing.assert_close(seen.sum((1, 2, 3)) / 64, torch.ones(200), rtol=0, atol=0.03)


def test_strokes_get_thicker_and_thinner_by_the_extremes_of_three_by_three_pixels() -> None:
    images = rows_of((1, 9, 8), rows=200)
    seen = replace(STILL, thickness=1)(images, draws_of(images))
    widest, narrowest = functional.max_pool2d(images, 3, 1, 1), -functional.max_pool2d(-images, 3, 1, 1)
    thicker = (seen - images).sum((1, 2, 3)) > 0
    assert 60 < thicker.sum() < 140
    for rows, extreme in ((thicker, widest), (~thicker, narrowest)):
        step, way = (seen - images)[rows].flatten(1), (extreme - images)[rows].flatten(1)
        weight = (step * way).sum(1, keepdim=True) / (way * way).sum(1, keepdim=True)
        torch.testing.assert_close(step, weight * way, rtol=0, atol=1e-4)
        assert 0 <= weight.min() < 0.1
        assert 0.9 < weight.max() <= 1.0001


def test_images_are_mirrored_only_where_asked_for() -> None:
    images = rows_of((1, 6, 7), rows=100)
    torch.testing.assert_close(STILL(images, draws_of(images)), images, rtol=0, atol=1e-5)
    seen = replace(STILL, flip=True)(images, draws_of(images))
    mirrored = (seen - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert 30 < mirrored.sum() < 70
    torch.testing.assert_close(seen[~mirrored], images[~mirrored], rtol=0, atol=1e-4)


def test_colours_change_on_three_channels_alone() -> None:
    for channels, changes in ((1, False), (3, True)):
        images = rows_of((channels, 6, 6))
        seen = replace(STILL, brightness=0.4, contrast=0.4, saturation=0.4)(images, draws_of(images))
        assert torch.allclose(seen, images, atol=1e-5) is not changes
    grey = rows_of((1, 6, 6)).expand(-1, 3, -1, -1)
    seen = replace(STILL, brightness=0.4, contrast=0.4, saturation=0.4)(grey, draws_of(grey))
    torch.testing.assert_close(seen[:, :1].expand(-1, 3, -1, -1), seen, rtol=0, atol=1e-5)


def test_a_square_is_cut_out() -> None:
    images = torch.ones(300, 3, 20, 20)
    seen = replace(STILL, cutout=0.5)(images, draws_of(images))
    cut = (seen == 0).sum((2, 3))
    assert torch.equal(cut[:, 0], cut[:, 1])
    assert cut.max() == 100
    assert 24 <= cut.min() < 50


def test_noise_has_the_size_of_the_columns() -> None:
    rows = torch.zeros(4000, 3)
    view = VectorView(noise=0.5, scale=torch.tensor([1.0, 10.0, 0.0]), dropout=0)
    torch.testing.assert_close(view(rows, draws_of(rows)).std(0), torch.tensor([0.5, 5.0, 0.0]), rtol=0.05, atol=0)


def test_dropped_features_keep_the_mean_and_masked_ones_do_not() -> None:
    rows = torch.ones(2000, 50)
    dropped = VectorView(noise=0, dropout=0.25)(rows, draws_of(rows))
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    masked = VectorView(noise=0, dropout=0, masking=0.5)(rows, draws_of(rows))
    assert set(masked.unique().tolist()) == {0, 1}
    parts = (masked == 0).float().mean(1)
    assert parts.mean() == pytest.approx(0.25, abs=0.02)
    assert parts.max() > 0.4


def test_a_part_of_the_time_is_stretched_to_the_length() -> None:
    ramp = torch.arange(41.0).expand(300, 2, 41)
    seen = SeriesView(jitter=0, scaling=0, masking=0, crop=0.4)(ramp, draws_of(ramp))
    step = seen[:, :, 1:] - seen[:, :, :-1]
    torch.testing.assert_close(step, step[:, :1, :1].expand_as(step), rtol=0, atol=1e-4)
    assert 0.6 <= step.min() + 1e-4 < 0.63
    assert seen.min() >= 0
    assert seen.max() <= 40


def test_a_gap_in_time_has_the_mean() -> None:
    wave = torch.sin(torch.arange(100.0) * (2 * math.pi / 10) + 0.3).expand(300, 1, 100) + 3
    seen = SeriesView(jitter=0, scaling=0, crop=0, masking=0.3)(wave, draws_of(wave))
    changed = (seen != wave)[:, 0]
    assert (changed[:, 1:] & ~changed[:, :-1]).sum(1).max() == 1  # one gap
    assert 25 < changed.sum(1).max() <= 30
    torch.testing.assert_close(seen[changed[:, None]], torch.full((int(changed.sum()),), 3.0), rtol=0, atol=1e-5)


def test_noise_and_factor_are_of_each_channel() -> None:
    series = torch.randn(300, 2, 200, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [50.0]])
    view = SeriesView(jitter=0.2, scaling=0, crop=0, masking=0)
    noise = (view(series, draws_of(series)) - series).std((0, 2))
    torch.testing.assert_close(noise, torch.tensor([0.2, 10.0]), rtol=0.03, atol=0)
    factors = replace(view, jitter=0, scaling=0.3)(series, draws_of(series)) / series
    torch.testing.assert_close(factors, factors[:, :, :1].expand_as(factors), rtol=1e-4, atol=0)
    assert 0.7 <= factors.min() + 1e-4 < 0.72
    assert 1.28 < factors.max() <= 1.3 + 1e-4
    assert not torch.allclose(factors[:, 0], factors[:, 1])


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_an_amplitude_is_a_number_of_at_least_zero(value: float) -> None:
    with pytest.raises(ConfigError, match="strength of a view"):
        VectorView(strength=value)


def test_every_kind_is_tested() -> None:
    assert {type(view) for view, _ in CASES} == set(VIEWS.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("view", "shape"), CASES)
def test_the_device_shows_the_view_of_the_cpu(view: View, shape: tuple[int, ...]) -> None:
    rows = rows_of(shape)
    there = view(rows.cuda(), Draws(torch.arange(len(rows)).cuda(), 0))
    torch.testing.assert_close(there.cpu(), view(rows, draws_of(rows)), rtol=1e-4, atol=1e-4)


def test_thinner_strokes_are_a_part_of_thicker_ones() -> None:
    images = rows_of((1, 12, 12))
    view = replace(STILL, thickness=1.0, thinness=0.0)
    assert bool((view(images, draws_of(images)) >= images - 1e-6).all())
