"""Views: random changes of rows that leave what they are of, drawn without labels, on the rows' device.

Contrastive learning and self-labelling train an encoder to give two views of a row the same features. All randomness
comes from the rows' `Draws`: a row has the same view in any batch, on any worker and device (to rounding). A new kind
of data is a class here and a line in VIEWS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from raydkm.errors import ConfigError
from raydkm.features.draws import Draws


@dataclass(frozen=True, kw_only=True)
class View:
    """What the views of all kinds of data share.

    Attributes
    ----------
    strength : float
        Multiplies every amplitude of the view; 0 leaves the rows as they are.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float | int) and not 0 <= value < math.inf:
                raise ConfigError(f"{field.name} of a view must be a number of at least 0, not {value}")

    @torch.no_grad()
    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """A view of each row of x (n, *shape) float32, of the same shape; x itself is not changed."""
        return self._changed(x, draws) if self.strength and len(x) else x

    def _changed(self, x: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def _times(self, amplitude: float, at_most: float = math.inf) -> float:
        return min(self.strength * amplitude, at_most)


@dataclass(frozen=True, kw_only=True)
class ImageView(View):
    """Views of images (n, channels, height, width) on a background of zeros.

    An affine map, thicker or thinner strokes, colours (of three channels alone), and a square cut out. Values stay
    between the least and the greatest of the row, or zero. The defaults are for written characters.

    Attributes
    ----------
    rotation : float
        The largest angle, in degrees, either way.
    scale : float
        The largest change of size: factors are uniform in 1 ± scale.
    stretch : float
        The largest change of width against height: factors are uniform in 1 ± stretch.
    shear : float
        The largest tangent of the angle by which verticals lean.
    translation : float
        The largest shift along each axis, in parts of the image, before the size changes.
    thickness : float
        The largest weight of the dilated image (maxima over 3 x 3 pixels) in its mean with the image.
    thinness : float
        The same of the eroded one (minima), as a part of `thickness`.
    brightness, contrast, saturation : float
        The largest changes of the factors on values, on differences from the image's mean, and from grey.
    flip : bool
        Whether half of the rows are mirrored left to right; not for characters.
    elastic : float
        Standard deviation of the shifts of a grid of 4 x 4 points, in parts of the image; between them they are smooth.
    cutout : float
        The side of the square that is set to zero, in parts of the image.
    cutout_share : float
        The part of the rows that it is cut out of.
    """

    rotation: float = 20.0
    scale: float = 0.2
    stretch: float = 0.1
    shear: float = 0.2
    translation: float = 0.1
    thickness: float = 0.5
    thinness: float = 1.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    flip: bool = False
    elastic: float = 0.0
    cutout: float = 0.0
    cutout_share: float = 1.0

    def _changed(self, x: Tensor, draws: Draws) -> Tensor:
        low, high = x.amin((1, 2, 3), keepdim=True).clamp(max=0), x.amax((1, 2, 3), keepdim=True).clamp(min=0)
        changed = self._moved(x, draws)
        if self.thickness:
            changed = self._thicker_or_thinner(changed, draws)
        if x.shape[1] == 3:
            changed = self._coloured(changed, draws)
        if self.cutout:
            changed = self._cut(changed, draws)
        return torch.clamp(changed, low, high)

    def _moved(self, x: Tensor, draws: Draws) -> Tensor:
        """Rotated, scaled, sheared, shifted and mirrored, in one bilinear interpolation (Jaderberg et al. 2015)."""
        n, _, height, width = x.shape
        turn, zoom, stretch, shear, right, down = (2 * draws.uniform(6) - 1).unbind(1)
        turn = turn * self._times(math.radians(self.rotation))
        zoom = 1 + zoom * self._times(self.scale, 0.9)
        stretch = 1 + stretch * self._times(self.stretch, 0.9)
        across = zoom * stretch.sqrt()
        if self.flip:
            across = across * (1 - 2 * draws.integers(2))
        # From where in the image the output's pixels come: the inverse of scaling, then shearing, then rotating.
        shear = shear * self._times(self.shear)
        cos, sin = torch.cos(turn), torch.sin(turn)
        along = zoom / stretch.sqrt()
        places = x.new_empty(n, 2, 3)
        places[:, 0, 0] = (cos - shear * sin) / across
        places[:, 0, 1] = (sin + shear * cos) / across * (height / width)
        places[:, 1, 0] = -sin / along * (width / height)
        places[:, 1, 1] = cos / along
        shift = 2 * self._times(self.translation)  # the image is 2 wide and 2 high
        places[:, 0, 2] = right * shift
        places[:, 1, 2] = down * shift
        grid = functional.affine_grid(places, list(x.shape), align_corners=False)
        if self.elastic:  # Simard et al. 2003
            shifts = draws.normal(2, 4, 4) * (2 * self._times(self.elastic))
            smooth = functional.interpolate(shifts, (height, width), mode="bicubic", align_corners=True)
            grid = grid + smooth.permute(0, 2, 3, 1)
        return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _thicker_or_thinner(self, x: Tensor, draws: Draws) -> Tensor:
        weight = (2 * draws.uniform(1, 1, 1) - 1) * self._times(self.thickness, 1)
        weight = torch.where(weight < 0, weight * min(self.thinness, 1), weight)
        sign = weight.sign()  # an image is eroded where its negative is dilated
        return x.lerp(_dilated(x * sign) * sign, weight.abs())

    def _coloured(self, x: Tensor, draws: Draws) -> Tensor:
        brightness, contrast, saturation = (2 * draws.uniform(3, 1, 1, 1) - 1).unbind(1)
        x = x * (1 + brightness * self._times(self.brightness, 1))
        x = x.mean((1, 2, 3), keepdim=True).lerp(x, 1 + contrast * self._times(self.contrast, 1))
        return x.mean(1, keepdim=True).lerp(x, 1 + saturation * self._times(self.saturation, 1))

    def _cut(self, x: Tensor, draws: Draws) -> Tensor:
        """Without a square of pixels at a random place (DeVries and Taylor 2017)."""
        height, width = x.shape[2:]
        down, right = draws.uniform(2).unbind(1)
        half = self._times(self.cutout, 1) * min(height, width) / 2
        rows = (torch.arange(height, device=x.device) + 0.5 - down[:, None] * height).abs() < half
        columns = (torch.arange(width, device=x.device) + 0.5 - right[:, None] * width).abs() < half
        chosen = (draws.uniform(1, 1) < self.cutout_share) & rows[:, :, None] & columns[:, None, :]
        return x.masked_fill(chosen[:, None], 0)


def _dilated(x: Tensor) -> Tensor:
    """The greatest of the 3 x 3 pixels around each, one axis after the other."""
    for axis in (2, 3):
        inner = x.shape[axis] - 1
        wider = x.clone()
        for here, there in ((0, 1), (1, 0)):
            part = wider.narrow(axis, here, inner)
            torch.maximum(part, x.narrow(axis, there, inner), out=part)
        x = wider
    return x


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorView(View):
    """Views of vectors (n, d): noise and dropped features.

    Attributes
    ----------
    noise : float
        Standard deviation of Gaussian noise, in units of `scale`.
    scale : Tensor (d,) float32, optional
        The columns' standard deviations; 1 where not given.
    dropout : float
        The probability that a feature is set to zero; the others grow by 1 / (1 - dropout), so that means stay.
    masking : float
        The largest part of a row's features that is set to zero without that; the part is uniform up to it.
    """

    noise: float = 0.1
    scale: Tensor | None = None
    dropout: float = 0.1
    masking: float = 0.0

    def _changed(self, x: Tensor, draws: Draws) -> Tensor:
        if self.noise:
            noise = draws.normal(x.shape[1]) * self._times(self.noise)
            x = x + (noise if self.scale is None else noise * self.scale.to(x.device))
        if self.dropout:
            probability = self._times(self.dropout, 0.9)
            x = x * (draws.uniform(x.shape[1]) >= probability) / (1 - probability)
        if self.masking:
            part = draws.uniform(1) * self._times(self.masking, 1)
            x = x * (draws.uniform(x.shape[1]) >= part)
        return x


@dataclass(frozen=True, kw_only=True)
class SeriesView(View):
    """Views of series (n, channels, length): noise, magnitude, a part of the time, and a gap.

    Attributes
    ----------
    jitter : float
        Standard deviation of Gaussian noise, in units of the standard deviation of the row's channel.
    scaling : float
        The largest change of the factor on each channel: uniform in 1 ± scaling.
    crop : float
        The largest part of the time that is left out at both ends together; the rest is stretched to the length.
    masking : float
        The largest part of the time that one gap takes, where each channel has its mean.
    """

    jitter: float = 0.1
    scaling: float = 0.2
    crop: float = 0.3
    masking: float = 0.1

    def _changed(self, x: Tensor, draws: Draws) -> Tensor:
        _, channels, length = x.shape
        time = torch.arange(length, device=x.device)
        if self.crop:
            left_out, share = draws.uniform(2, 1).unbind(1)
            left_out = left_out * self._times(self.crop, 0.9)
            x = _at_times(x, left_out * share * (length - 1) + time * (1 - left_out))
        if self.scaling:
            x = x * (1 + (2 * draws.uniform(channels, 1) - 1) * self._times(self.scaling, 1))
        spread, mean = torch.std_mean(x, dim=2, correction=0, keepdim=True)
        if self.jitter:
            x = x + draws.normal(channels, length) * spread * self._times(self.jitter)
        if self.masking:
            part, share = draws.uniform(2, 1).unbind(1)
            part = part * self._times(self.masking, 1)
            since = (time + 0.5) / length - share * (1 - part)  # the gap's beginning, in parts of the length
            x = torch.where(((since >= 0) & (since < part))[:, None], mean, x)
        return x


def _at_times(x: Tensor, times: Tensor) -> Tensor:
    """Values (n, channels, m) of series x (n, channels, length) at times (n, m) in [0, length - 1], interpolated."""
    before = times.floor().clamp(0, x.shape[2] - 1)
    after = (before + 1).clamp(max=x.shape[2] - 1)
    shape = (-1, x.shape[1], -1)
    first = x.gather(2, before.long()[:, None].expand(shape))
    second = x.gather(2, after.long()[:, None].expand(shape))
    return first.lerp(second, (times - before)[:, None])


VIEWS: dict[str, type[View]] = {"image": ImageView, "vector": VectorView, "series": SeriesView}
