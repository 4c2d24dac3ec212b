from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from raydkm.engine.comm import ProcessGroup
from raydkm.errors import ConfigError, ModelError
from raydkm.features.encoders import ENCODERS, Encoder, GlobalBatchNorm, build_encoder, own_build, rebuild
from tests.unit.engine.processes import answers_of

CASES = [
    ("identity", (7,), {}),
    ("identity", (2, 3, 4), {}),
    ("mlp", (7,), {"width": 16, "dim": 5}),
    ("mlp", (2, 9), {"width": 16, "depth": 1, "dim": 18, "norm": "batch", "activation": "gelu"}),
    ("mlp", (7,), {"width": 16, "dim": 5, "residual": False}),
    ("conv", (1, 28, 28), {}),
    ("conv", (1, 28, 28), {"channels": (8, 16, 32), "kernel": 3, "dim": 12, "norm": "batch", "bounded": False}),
    ("conv", (3, 17, 30), {"channels": (4, 6), "kernel": 4, "dim": 9, "activation": "leaky-relu"}),
    ("tcn", (3, 50), {"channels": (4, 4, 8), "kernel": 3, "dim": 6}),
    ("tcn", (1, 5), {"channels": (4,), "dim": 6, "norm": "none"}),
]

OWN = """
from torch import nn

class Network(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.layer = nn.Linear(inputs, width)
        self.inputs, self.width = inputs, width

    def forward(self, x):
        return self.layer(x)

    def decoder(self):
        return nn.Linear(self.width, self.inputs)

def build(shape, width=4):
    return Network(shape[0], width)

def plain(shape):
    return nn.Linear(shape[0], 3)

def images(shape):
    return nn.Identity()

def nothing(shape):
    return None

value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_encoder_of_tests.py").write_text(OWN)
    (tmp_path / "own_encoder_without_parts.py").write_text("import no_such_package_of_tests")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_encoder_of_tests"
    sys.modules.pop("own_encoder_of_tests", None)


def rows_of(shape: tuple[int, ...], rows: int = 6) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "shape", "arguments"), CASES)
def test_an_encoder_gives_features_and_its_decoder_rows(
    name: str, shape: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    encoder = build_encoder(name, shape, arguments, seed=0)
    rows = rows_of(shape)
    features = encoder(rows)
    assert features.shape == (6, encoder.dim)
    assert features.dtype == torch.float32
    assert encoder.dim == arguments.get("dim", encoder.dim)
    restored = encoder.decoder()(features)
    assert restored.shape == rows.shape
    if name != "identity":
        restored.square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("name", "shape", "arguments"), CASES)
def test_features_do_not_depend_on_the_other_rows(name: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    encoder = build_encoder(name, shape, arguments, seed=0)
    rows = rows_of(shape)
    encoder(3 * rows)  # moves the running statistics away from where they start
    encoder.eval()
    with torch.no_grad():
        together = encoder(rows)
        alone = torch.cat([encoder(rows[row : row + 1]) for row in range(len(rows))])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape", "arguments"), CASES)
def test_a_rebuilt_encoder_is_the_same_encoder(name: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    encoder = build_encoder(name, shape, arguments, seed=3)
    encoder(rows_of(shape))
    description = json.loads(json.dumps(encoder.description))
    again = rebuild(description, load(save(encoder.weights())))
    assert again.description == encoder.description
    assert not again.training
    assert same(again.weights(), encoder.weights())
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(again(rows_of(shape)), encoder.eval()(rows_of(shape)))


def test_a_description_holds_the_defaults_of_its_day() -> None:
    assert build_encoder("conv", (1, 8, 8), {"dim": 3}, 0).description == {
        "name": "conv",
        "shape": [1, 8, 8],
        "arguments": {
            "channels": [50, 50],
            "kernel": 5,
            "dim": 3,
            "bounded": True,
            "norm": "none",
            "activation": "relu",
            "output_norm": "none",
            "crop": 0,
        },
    }


def test_a_crop_leaves_out_the_edge() -> None:
    encoder = build_encoder("conv", (1, 12, 12), {"dim": 3, "kernel": 3, "crop": 2}, 0).eval()
    x = torch.rand(2, 1, 12, 12)
    inner = torch.zeros_like(x)
    inner[:, :, 2:-2, 2:-2] = x[:, :, 2:-2, 2:-2]
    assert torch.equal(encoder(x), encoder(inner))
    assert not torch.equal(encoder(x), encoder(torch.zeros_like(x)))
    assert encoder.decoder()(encoder(x)).shape == x.shape


def test_weights_follow_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = build_encoder("conv", (1, 8, 8), {}, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert same(first.weights(), build_encoder("conv", (1, 8, 8), {}, seed=1).weights())
    assert not same(first.weights(), build_encoder("conv", (1, 8, 8), {}, seed=2).weights())
    assert same(first.decoder(5).state_dict(), first.decoder(5).state_dict())
    assert not same(first.decoder(5).state_dict(), first.decoder(6).state_dict())


def test_weights_are_copies() -> None:
    encoder = build_encoder("mlp", (3,), {"width": 4}, 0)
    before = encoder.weights()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert not any(torch.equal(before[name], tensor) for name, tensor in encoder.weights().items())


def test_a_residual_mlp_starts_from_the_row() -> None:
    rows = rows_of((7,))
    assert torch.equal(build_encoder("mlp", (7,), {"dim": 7}, 0)(rows), rows)
    narrower = build_encoder("mlp", (7,), {"dim": 3}, 0)
    projection = narrower(torch.eye(7))
    torch.testing.assert_close(projection.T @ projection, torch.eye(3))


def test_a_bounded_encoder_is_bounded() -> None:
    encoder = build_encoder("conv", (1, 8, 8), {}, 0)
    assert encoder(1e6 * rows_of((1, 8, 8))).abs().max() <= 1


def test_features_are_float32_in_mixed_precision_too() -> None:
    encoder = build_encoder("conv", (1, 8, 8), {"norm": "batch"}, 0)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(rows_of((1, 8, 8)))
    assert features.dtype == torch.float32
    features.sum().backward()


def test_a_tcn_takes_any_length() -> None:
    encoder = build_encoder("tcn", (2, 40), {"channels": (4, 4)}, 0)
    assert encoder(rows_of((2, 7))).shape == encoder(rows_of((2, 300))).shape == (6, encoder.dim)


def test_arguments_may_come_as_text_gives_them() -> None:
    encoder = build_encoder("conv", (1, 8, 8), {"channels": 4, "bounded": "false"}, 0)
    assert encoder.description["arguments"]["channels"] == [4]
    assert encoder.description["arguments"]["bounded"] is False


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("cnn", (3,), {}, "'cnn' is none of identity, mlp, conv, tcn and package.module:build"),
        ("mlp", (3,), {"deep": 3}, r"no argument 'deep'; .*: width \(512\), depth \(2\)"),
        ("identity", (3,), {"dim": 3}, "no argument 'dim'.*none"),
        ("mlp", (3,), {"depth": 0}, "depth of encoder mlp must be a whole number of at least 1, not 0"),
        ("mlp", (3,), {"depth": 2.0}, "depth of encoder mlp"),
        ("mlp", (3,), {"depth": True}, "depth of encoder mlp"),
        ("mlp", (3,), {"norm": "layer"}, "must be one of none, batch, not 'layer'"),
        ("mlp", (3,), {"norm": ["batch"]}, "must be one of none, batch"),
        ("conv", (1, 8, 8), {"bounded": 1}, "must be true or false, not 1"),
        ("conv", (1, 8, 8), {"channels": (8, "x")}, "each of channels of encoder conv"),
        ("conv", (1, 8, 8), {"channels": ()}, "each of channels of encoder conv"),
        ("conv", (784,), {}, r"\(channels, height, width\), not \(784,\)"),
        ("conv", (1, 2, 2), {"channels": (4, 4), "kernel": 4}, "leave nothing"),
        ("tcn", (784,), {}, r"\(channels, length\), not \(784,\)"),
        ("tcn", (1, 9), {"kernel": 4}, "odd kernel"),
        ("mlp", (), {}, "row's shape"),
        ("mlp", (3, 0), {}, "row's shape"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, shape: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, shape, arguments, 0)


def test_an_own_encoder_is_built_and_rebuilt_by_its_function_alone(own: str) -> None:
    name = f"{own}:build"
    encoder = build_encoder(name, (5,), {"width": 2}, seed=1)
    assert encoder.dim == 2
    assert encoder.training
    assert encoder.decoder()(encoder(rows_of((5,)))).shape == (6, 5)
    assert same(encoder.weights(), build_encoder(name, (5,), {"width": 2}, seed=1).weights())
    with pytest.raises(ModelError, match="--encoder"):
        rebuild(encoder.description, encoder.weights())
    again = rebuild(encoder.description, encoder.weights(), own_build(name))
    assert torch.equal(again(rows_of((5,))), encoder(rows_of((5,))))
    with pytest.raises(ModelError, match=r"missing|none of it"):
        rebuild(encoder.description | {"arguments": {}}, encoder.weights(), own_build(f"{own}:plain"))


def test_an_own_encoder_without_a_decoder_says_so(own: str) -> None:
    with pytest.raises(ConfigError, match=r"decoder\(\)"):
        build_encoder(f"{own}:plain", (5,), {}, seed=1).decoder()


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("no_such_package_of_tests:build", (5,), {}, "no_such_package_of_tests cannot be imported"),
        ("own_encoder_without_parts:build", (5,), {}, "No module named 'no_such_package_of_tests'"),
        ("own_encoder_of_tests:no", (5,), {}, "no function no"),
        ("own_encoder_of_tests:value", (5,), {}, "no function value"),
        ("own_encoder_of_tests:", (5,), {}, "package.module:build"),
        (":build", (5,), {}, "package.module:build"),
        ("own_encoder_of_tests:build", (5,), {"depth": 3}, r"unexpected keyword argument 'depth'.*\(shape, width=4\)"),
        ("own_encoder_of_tests:nothing", (5,), {}, "NoneType, not a torch.nn.Module"),
        ("own_encoder_of_tests:images", (5, 2), {}, r"must turn \(1, 5, 2\) into \(1, dim\) float32"),
        ("own_encoder_of_tests:plain", (5, 2), {}, r"cannot encode a row of shape \(5, 2\)"),
    ],
)
def test_what_is_wrong_with_an_own_encoder_is_named(
    own: str, name: str, shape: tuple[int, ...], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, shape, arguments, 0)


def damaged(change: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    encoder = build_encoder("mlp", (3,), {"width": 4, "depth": 1, "dim": 2}, 0)
    description, tensors = encoder.description, encoder.weights()
    first = next(iter(tensors))
    if change == "no name":
        del description["name"]
    elif change == "other arguments":
        description["arguments"]["width"] = 5
    elif change == "huge":
        description["arguments"]["width"] = 10**15
    elif change == "beyond int64":
        description["arguments"]["width"] = 2**64
    elif change == "unknown argument":
        description["arguments"]["kernel"] = 5
    elif change == "shape":
        description["shape"] = 3
    elif change == "missing":
        del tensors[first]
    elif change == "more":
        tensors["more"] = tensors[first]
    elif change == "dtype":
        tensors[first] = tensors[first].double()
    elif change == "not finite":
        tensors[first][0, 0] = torch.nan
    return description, tensors


@pytest.mark.parametrize(
    "change",
    [
        "no name",
        "other arguments",
        "huge",
        "beyond int64",
        "unknown argument",
        "shape",
        "missing",
        "more",
        "dtype",
        "not finite",
    ],
)
def test_a_damaged_encoder_is_refused(change: str) -> None:
    with pytest.raises(ModelError):
        rebuild(*damaged(change))


def test_an_own_function_is_not_ignored_for_another_encoder(own: str) -> None:
    encoder = build_encoder("identity", (3,), {}, 0)
    with pytest.raises(ConfigError, match="--encoder"):
        rebuild(encoder.description, encoder.weights(), own_build(f"{own}:build"))


def test_every_registered_encoder_is_tested() -> None:
    assert {name for name, _, _ in CASES} == set(ENCODERS)
    assert all(isinstance(ENCODERS[name](shape, **arguments), Encoder) for name, shape, arguments in CASES)


def batches(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Rows far from zero, and what a loss weighs their outputs with."""
    generator = torch.Generator().manual_seed(0)
    return 20 + torch.randn(2, 11, *shape, generator=generator), torch.randn(2, 11, *shape, generator=generator)


def normalised(norm: nn.Module, parts: slice, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Two steps of training with the part of the rows, then evaluation on all of them."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, shape[0]))
        norm.bias.copy_(torch.linspace(-1, 1, shape[0]))
    found: dict[str, Tensor] = {}
    for step, (rows, weigh) in enumerate(zip(*batches(shape), strict=True)):
        x = rows[parts].clone().requires_grad_()
        y = norm(x)
        (weigh[parts] * y.square()).sum().backward()
        found |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    found |= {"dweight": norm.weight.grad, "dbias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "var": norm.running_var}
    norm.eval()
    return {name: value.clone() for name, value in (found | {"eval": norm(batches(shape)[0][0]).detach()}).items()}


def test_alone_it_is_batch_norm() -> None:
    reference = normalised(nn.BatchNorm1d(3), slice(None), (3, 4))
    for name, value in normalised(GlobalBatchNorm(3), slice(None), (3, 4)).items():
        torch.testing.assert_close(value, reference[name], rtol=0, atol=0)


#: How many of the eleven rows the first of two workers has, the shape of a row, and what torch has for it.
SHARES: list[tuple[int, tuple[int, ...], type[nn.Module]]] = [
    (4, (3,), nn.BatchNorm1d),
    (11, (3, 5), nn.BatchNorm1d),
    (10, (2, 3, 4), nn.BatchNorm2d),
]


def trained(encoder: nn.Module, parts: slice, world: int) -> dict[str, Tensor]:
    """Weights and running statistics after three steps of gradient descent on the part of the rows."""
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.05)
    rows = rows_of((1, 9, 9), rows=11)
    for _ in range(3):
        optimiser.zero_grad()
        (encoder(rows[parts]).square().sum() * world / len(rows)).backward()  # DDP takes the mean over workers
        optimiser.step()
    return {name.removeprefix("module."): value.detach() for name, value in encoder.state_dict().items()}


def small_conv() -> Encoder:
    return build_encoder("conv", (1, 9, 9), {"channels": (4, 5), "dim": 3, "norm": "batch"}, seed=0)


def shared_out(comm: ProcessGroup, _: None) -> list[dict[str, Any]]:
    def parts(cut: int) -> slice:
        return slice(None, cut) if comm.rank == 0 else slice(cut, None)

    found = [normalised(GlobalBatchNorm(shape[0]), parts(cut), shape) for cut, shape, _ in SHARES]
    parallel = nn.parallel.DistributedDataParallel(small_conv())
    found.append(trained(parallel, parts(4), world=2))
    return [{name: value.numpy() for name, value in each.items()} for each in found]


@pytest.fixture(scope="module")
def by_two_workers() -> list[list[dict[str, Tensor]]]:
    """The answers of both workers to each of SHARES, then to training in parallel."""
    answers = answers_of(2, shared_out)
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    each = zip(answers[0], answers[1], strict=True)
    return [[{name: torch.from_numpy(value) for name, value in one.items()} for one in both] for both in each]


@pytest.mark.parametrize("case", range(len(SHARES)))
def test_over_workers_it_is_batch_norm_of_all_rows(by_two_workers: list[list[dict[str, Tensor]]], case: int) -> None:
    _, shape, kind = SHARES[case]
    one, other = by_two_workers[case]
    for name, expected in normalised(kind(shape[0]), slice(None), shape).items():
        if name[:-1] in ("y", "dx"):
            found = torch.cat([one[name], other[name]])
        elif name in ("dweight", "dbias"):
            found = one[name] + other[name]
        else:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
            found = one[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_encoder_trains_alike_on_one_worker_and_on_two(by_two_workers: list[list[dict[str, Tensor]]]) -> None:
    before, expected = small_conv().weights(), trained(small_conv(), slice(None), world=1)
    for found in by_two_workers[-1]:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(value, before[name], rtol=1e-4, atol=1e-5), f"{name} was not trained"
