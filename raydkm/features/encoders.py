"""The networks that turn rows into features. A new one is a function here and a line in ENCODERS.

A user's own is a function of the same kind that is named `package.module:build`, on the command line or in a job file.
A model artefact never names code that is run: to use a model with such an encoder its user names the function again.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydkm.errors import ConfigError, ModelError
from raydkm.features.workers import several_workers, sum_over_workers

Shape = tuple[int, ...]

#: ``build(shape, **arguments)``: the network for rows of this shape.
Build = Callable[..., nn.Module]

Norm = Literal["none", "batch"]

Activation = Literal["relu", "leaky-relu", "gelu", "tanh"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


#: What a model artefact may ask for, before it is known whether its tensors are of that size.
MOST_LAYERS, LARGEST_SIZE = 1000, 2**20


class Encoder(nn.Module):
    """A network (n, *shape) float32 -> (n, dim) float32, also where autocast computes it in less.

    Parameters
    ----------
    network : Module
        What computes it.
    dim : int
        The dimension of the features.
    decoder : callable, optional
        Builds a network (n, dim) -> (n, *shape), the mirror image of this one.

    Attributes
    ----------
    description : dict
        Name, shape and all arguments, for JSON; with the state dict it is what `rebuild` needs.
    """

    def __init__(self, network: nn.Module, dim: int, decoder: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        self.network = network
        self.dim = dim
        self.description: dict[str, Any] = {}
        self._decoder = decoder

    def forward(self, rows: Tensor) -> Tensor:
        return self.network(rows).float()

    def weights(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers on the CPU, fit for safetensors: contiguous, none shared."""
        return {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.state_dict().items()
        }

    def decoder(self, seed: int = 0) -> nn.Module:
        """The decoder, with weights of its own; it is not part of the encoder. ConfigError where there is none."""
        if self._decoder is None:
            raise ConfigError(
                "this encoder has no decoder. Give its module a method decoder(), which returns the torch.nn.Module "
                "from features to rows, or train without reconstruction"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._decoder()


class GlobalBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of (n, features, ...) over the rows of all workers.

    It is torch.nn.BatchNorm of the workers' batches put together, in training and in its running statistics, however
    the rows are shared out: a worker may have none. Unlike torch.nn.SyncBatchNorm it runs on CPUs too. Where
    torch.distributed is initialised, all workers must go through forward, and backward, together; the gradient of a
    row is then that of the sum of all workers' losses.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and several_workers():
            return self._over_workers(x)
        running = (self.running_mean, self.running_var)
        return functional.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps)

    def _over_workers(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        per_feature = (-1,) + (1,) * (x.ndim - 2)
        single = x.float()
        local = single.new_tensor([x.numel() // x.shape[1]])
        sums = sum_over_workers(torch.cat([single.sum(axes), local]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = single - mean.view(per_feature)
        var = sum_over_workers(centred.square().sum(axes)) / count  # of centred values: no cancellation
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (centred * scale.view(per_feature) + self.bias.view(per_feature)).to(x.dtype)


def identity(shape: Shape) -> Encoder:
    """The row itself, flattened."""
    return Encoder(nn.Flatten(), math.prod(shape), lambda: nn.Unflatten(1, shape))


def mlp(
    shape: Shape,
    *,
    width: int = 512,
    depth: int = 2,
    dim: int = 128,
    norm: Norm = "none",
    activation: Activation = "relu",
    residual: bool = True,
) -> Encoder:
    """Fully connected: `depth` hidden layers of `width` units, then `dim` outputs.

    With `residual` its output is added to the row, or to an orthogonal projection of the row where `dim` differs, and
    is zero at first: training starts from the features that the rows are, which for embeddings is no small thing.
    """
    size = math.prod(shape)

    def layers(inputs: int, outputs: int) -> nn.Sequential:
        hidden: list[nn.Module] = []
        for before, after in pairwise([inputs] + [width] * depth):
            hidden += [nn.Linear(before, after, bias=norm == "none"), *_activated(after, norm, activation)]
        return nn.Sequential(*hidden, nn.Linear(width, outputs))

    def mirrored() -> nn.Module:
        return nn.Sequential(layers(dim, size), nn.Unflatten(1, shape))

    body = layers(size, dim)
    if not residual:
        return Encoder(nn.Sequential(nn.Flatten(), body), dim, mirrored)
    for parameter in body[-1].parameters():
        nn.init.zeros_(parameter)
    skip = nn.Identity() if dim == size else nn.Linear(size, dim, bias=False)
    for parameter in skip.parameters():
        nn.init.orthogonal_(parameter)
    return Encoder(nn.Sequential(nn.Flatten(), _Residual(body, skip)), dim, mirrored)


def conv(
    shape: Shape,
    *,
    channels: tuple[int, ...] = (50, 50),
    kernel: int = 5,
    dim: int = 64,
    bounded: bool = True,
    norm: Norm = "none",
    activation: Activation = "relu",
    output_norm: Norm = "none",
    crop: int = 0,
) -> Encoder:
    """Images (channels, height, width): convolutions of stride 2, then a fully connected layer.

    The defaults are the network of Jabi et al. (arXiv 1810.04246), after DEPICT (Dizaji et al. 2017): two layers of 50
    channels and a dense layer at least as wide as there are clusters. `bounded` ends in tanh: pulling features outward
    lowers the loss of SR-K-means without limit. `output_norm` gives each feature the same variance; `crop`
    leaves out so many pixels at each edge.
    """
    _check_axes("conv", shape, ("channels", "height", "width"))
    maps = [shape[0], *channels]
    padding = (kernel - 1) // 2
    sizes = [tuple(length - 2 * crop for length in shape[1:])]
    for _ in channels:
        sizes.append(tuple((size + 2 * padding - kernel) // 2 + 1 for size in sizes[-1]))
    if min(sizes[-1]) < 1:
        raise ConfigError(f"{len(channels)} layers of kernel {kernel} leave nothing of images of shape {shape}")
    flat = maps[-1] * math.prod(sizes[-1])

    def mirrored() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(dim, flat), nn.Unflatten(1, (maps[-1], *sizes[-1]))]
        for step in reversed(range(len(channels))):
            height, width = ((size + 2 * padding - kernel) % 2 for size in sizes[step])
            layers += _activated(maps[step + 1], norm, activation)
            layers.append(
                nn.ConvTranspose2d(maps[step + 1], maps[step], kernel, 2, padding, output_padding=(height, width))
            )
        return nn.Sequential(*layers, *([nn.ZeroPad2d(crop)] if crop else []))

    layers: list[nn.Module] = [nn.ZeroPad2d(-crop)] if crop else []
    for before, after in pairwise(maps):
        layers += [nn.Conv2d(before, after, kernel, 2, padding, bias=norm == "none")]
        layers += _activated(after, norm, activation)
    layers += [nn.Flatten(), nn.Linear(flat, dim)]
    if output_norm == "batch":
        layers.append(GlobalBatchNorm(dim))
    if bounded:
        layers.append(nn.Tanh())
    return Encoder(nn.Sequential(*layers), dim, mirrored)


def tcn(
    shape: Shape,
    *,
    channels: tuple[int, ...] = (64, 64, 64, 64),
    kernel: int = 5,
    dim: int = 64,
    norm: Norm = "batch",
    activation: Activation = "relu",
) -> Encoder:
    """Series (channels, length): residual blocks of two convolutions, dilated by 1, 2, 4, ... (Bai et al. 2018).

    A feature sees `1 + 2 (kernel - 1) (2**blocks - 1)` points, to both sides of its own, as a whole series is known.
    Average and maximum over time make it a network for series of any length. The decoder doubles the length instead,
    from the last block to the first.
    """
    _check_axes("tcn", shape, ("channels", "length"))
    if kernel % 2 == 0:
        raise ConfigError(f"tcn needs an odd kernel, which has a middle; not {kernel}")
    maps = [shape[0], *channels]
    lengths = [-(-shape[1] // 2**block) for block in range(len(channels) + 1)]

    def mirrored() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(dim, maps[-1] * lengths[-1]), nn.Unflatten(1, (maps[-1], lengths[-1]))]
        for block in reversed(range(len(channels))):
            layers += [*_activated(maps[block + 1], norm, activation), nn.Upsample(size=lengths[block])]
            layers.append(nn.Conv1d(maps[block + 1], maps[block], kernel, padding="same"))
        return nn.Sequential(*layers)

    blocks: list[nn.Module] = []
    for block, (before, after) in enumerate(pairwise(maps)):
        body: list[nn.Module] = []
        for inputs in (before, after):
            body.append(nn.Conv1d(inputs, after, kernel, padding="same", dilation=2**block, bias=norm == "none"))
            body += _activated(after, norm, activation)
        skip = nn.Identity() if before == after else nn.Conv1d(before, after, 1)
        blocks += [_Residual(nn.Sequential(*body), skip), _ACTIVATIONS[activation]()]
    return Encoder(nn.Sequential(*blocks, _MeanAndMax(), nn.Linear(2 * maps[-1], dim)), dim, mirrored)


class _Residual(nn.Module):
    """`skip(x) + body(x)` (He et al. 2016)."""

    def __init__(self, body: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class _MeanAndMax(nn.Module):
    """Average and maximum over time, (n, channels, length) -> (n, 2 channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)


def _activated(features: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    """What follows a layer; before batch normalisation a bias of the layer would do nothing."""
    return [*([GlobalBatchNorm(features)] if norm == "batch" else []), _ACTIVATIONS[activation]()]


def _check_axes(name: str, shape: Shape, axes: tuple[str, ...]) -> None:
    if len(shape) != len(axes):
        raise ConfigError(f"encoder {name} is for rows of shape ({', '.join(axes)}), not {shape}")


ENCODERS: dict[str, Callable[..., Encoder]] = {"identity": identity, "mlp": mlp, "conv": conv, "tcn": tcn}


def build_encoder(name: str, shape: Shape, arguments: Mapping[str, Any], seed: int) -> Encoder:
    """Build an encoder; the same seed gives the same weights, and torch's global generator is left as it was.

    Parameters
    ----------
    name : str
        One of ENCODERS, or `package.module:build` for a function of the user's own.
    shape : tuple of int
        Shape of one row: (d,), (channels, height, width) or (channels, length).
    arguments : mapping
        What the build function takes after the shape.
    seed : int
        Of the initial weights.

    Raises
    ------
    ConfigError
        If the name, the shape or an argument is not one that is known.
    """
    return _build(name, shape, arguments, seed, own_build(name) if ":" in name else None)


def rebuild(description: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Build | None = None) -> Encoder:
    """The encoder of a model artefact, in evaluation mode.

    Parameters
    ----------
    description : mapping
        What was `Encoder.description`.
    tensors : mapping of str to Tensor
        What was `Encoder.weights()`.
    own : callable, optional
        The build function, where the encoder is the user's own; see `own_build`.

    Raises
    ------
    ModelError
        If the description or a tensor is damaged, or the encoder is the user's own and `own` is missing.
    ConfigError
        If `own` is given and the encoder is not the user's own.
    """
    try:
        name, shape, arguments = str(description["name"]), tuple(description["shape"]), dict(description["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model's description of its encoder is damaged: {description!r}") from error
    numbers = [size for value in arguments.values() for size in (value if isinstance(value, list) else [value])]
    if len(numbers) > MOST_LAYERS or any(isinstance(size, int) and size > LARGEST_SIZE for size in numbers):
        raise ModelError(f"the model's encoder has sizes that none has: {arguments!r:.200}")
    if isinstance(arguments.get("depth"), int) and arguments["depth"] > MOST_LAYERS:
        raise ModelError(f"the model's encoder has {arguments['depth']} layers")
    if own is None and name not in ENCODERS:
        raise ModelError(
            f"the model has an encoder of its user's own, {name}, which is not loaded from a model: pass its function "
            "as --encoder package.module:build"
        )
    if own is not None and name in ENCODERS:
        raise ConfigError(f"the model's encoder is {name}: --encoder is for models with an encoder of the user's own")
    try:
        with torch.device("cpu" if own else "meta"):  # whatever sizes it asks for, no more memory than the tensors take
            encoder = _build(name, shape, arguments, 0, own)
    except (ConfigError, RuntimeError, TypeError) as error:  # the latter two: torch's, of sizes beyond int64
        raise ModelError(f"the model's encoder cannot be built again: {error}") from error
    _check_tensors(encoder.state_dict(), tensors)
    encoder.load_state_dict(dict(tensors), assign=own is None)
    return encoder.eval()


def own_build(name: str) -> Build:
    """The user's function `package.module:build`; ConfigError says what of it is missing."""
    place, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*place.split("."), function]):
        raise ConfigError(f"encoder {name!r} is not of the form package.module:build")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise ConfigError(f"encoder {name}: {place} cannot be imported ({error}). Is it on PYTHONPATH?") from error
    build = getattr(module, function, None)
    if not callable(build):
        raise ConfigError(f"encoder {name}: module {place} has no function {function}")
    return build


def _build(name: str, shape: Shape, arguments: Mapping[str, Any], seed: int, own: Build | None) -> Encoder:
    if not shape or any(type(size) is not int or size < 1 for size in shape):
        raise ConfigError(f"a row's shape is made of positive whole numbers, as in (1, 28, 28); not {shape}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if own is not None:
            encoder = _of_own(name, own, shape, arguments)
        else:
            if name not in ENCODERS:
                raise ConfigError(f"encoder {name!r} is none of {', '.join(ENCODERS)} and package.module:build")
            arguments = _checked(name, arguments)
            encoder = ENCODERS[name](shape, **arguments)
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    encoder.description = {"name": name, "shape": list(shape), "arguments": given}
    return encoder


def _checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of one of ENCODERS, those not given by their defaults; ConfigError where one is not accepted."""
    accepted = dict(inspect.signature(ENCODERS[name], eval_str=True).parameters)
    accepted.pop("shape")
    if unknown := sorted(set(arguments) - set(accepted)):
        known = ", ".join(f"{key} ({parameter.default})" for key, parameter in accepted.items())
        raise ConfigError(
            f"encoder {name} has no argument {unknown[0]!r}; its arguments (defaults) are: {known or 'none'}"
        )
    return {
        key: _as_annotated(f"{key} of encoder {name}", parameter.annotation, arguments.get(key, parameter.default))
        for key, parameter in accepted.items()
    }


def _as_annotated(what: str, annotation: Any, value: Any) -> Any:
    """A value as an int of at least 1, a tuple of them, a bool or one of a Literal's, whichever the annotation is."""
    if annotation is int:
        least = 0 if what.startswith("crop ") else 1
        if type(value) is int and value >= least:
            return value
        raise ConfigError(f"{what} must be a whole number of at least {least}, not {value!r}")
    if annotation is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ConfigError(f"{what} must be true or false, not {value!r}")
    if get_origin(annotation) is Literal:
        if value in get_args(annotation):
            return value
        raise ConfigError(f"{what} must be one of {', '.join(get_args(annotation))}, not {value!r}")
    several = value if isinstance(value, Sequence) and not isinstance(value, str) and value else (value,)
    return tuple(_as_annotated(f"each of {what}", int, each) for each in several)


def _of_own(name: str, build: Build, shape: Shape, arguments: Mapping[str, Any]) -> Encoder:
    """The user's network as an Encoder; it is run once, on a row of zeros, for its dimension."""
    signature = inspect.signature(build)
    try:
        signature.bind(shape, **arguments)
    except TypeError as error:
        raise ConfigError(
            f"encoder {name} is called as build(shape, **arguments): {error}; it is {signature}"
        ) from error
    network = build(shape, **arguments)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"encoder {name} returned a {type(network).__name__}, not a torch.nn.Module")
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise ConfigError(f"encoder {name} cannot encode a row of shape {shape}: {error}") from error
    if not (
        isinstance(features, Tensor) and features.dtype == torch.float32 and features.ndim == 2 and len(features) == 1
    ):
        found = f"{tuple(features.shape)} {features.dtype}" if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"encoder {name} must turn (1, {', '.join(map(str, shape))}) into (1, dim) float32, not {found}"
        )
    return Encoder(network.train(), features.shape[1], getattr(network, "decoder", None))


def _check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """ModelError unless there are exactly the expected tensors, of their shapes and dtypes, and finite."""
    if wrong := sorted(set(expected) ^ set(tensors)):
        state = "missing" if wrong[0] in expected else "none of it"
        raise ModelError(f"tensor {wrong[0]} of the encoder is {state}: the model is damaged or of another encoder")
    for name, tensor in tensors.items():
        known = expected[name]
        if tensor.shape != known.shape or tensor.dtype != known.dtype:
            found, wanted = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(known.shape)} {known.dtype}"
            raise ModelError(f"tensor {name} of the encoder is {found}, not {wanted}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"tensor {name} of the encoder is not finite")
