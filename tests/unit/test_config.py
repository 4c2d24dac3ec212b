from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raydkm.config import FeatureConfig, FitConfig, FitRunConfig, configure, read_yaml
from raydkm.errors import ConfigError


def test_options_are_sorted_into_what_determines_the_result_and_what_does_not() -> None:
    config, made, run = configure({"clusters": 3, "balance": 0.5, "map": "center", "threads": 2, "engine": "local"})
    assert (config.clusters, config.balance) == (3, 0.5)
    assert (run.threads, run.engine) == (2, "local")
    assert made.map == "center"
    assert configure({}) == (FitConfig(), FeatureConfig(), FitRunConfig())


@pytest.mark.parametrize("model", [FitConfig, FeatureConfig, FitRunConfig])
def test_every_parameter_is_described_once(model) -> None:
    assert all(field.description for field in model.model_fields.values())
    names = [name for each in (FitConfig, FeatureConfig, FitRunConfig) for name in each.model_fields]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "hint"), [("cluster", "clusters"), ("ballance", "balance"), ("thread", "threads")])
def test_an_unknown_key_is_refused_with_the_nearest_known_one(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown configuration key '{name}'; did you mean '{hint}'"):
        configure({name: 1})


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": 0},
        {"clusters": -3},
        {"clusters": 2.5},
        {"clusters": "many"},
        {"clusters": None},
        {"objective": "k-medians"},
        {"metric": "manhattan"},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": "warm"},
        {"temperature": "Tc"},
        {"temperature": "-0.1Tc"},
        {"temperature": "1e-3e-3Tc"},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "nan"},
        {"temperature": "inf"},
        {"temperature": "1e999Tc"},
        {"lam": 0},
        {"lam": float("inf")},
        {"balance": -0.1},
        {"balance": 1.1},
        {"balance": float("nan")},
        {"init": "kmeans++"},
        {"n_init": 0},
        {"max_steps": 0},
        {"tol": -1e-9},
        {"tol": float("nan")},
        {"seed": -1},
        {"seed": 2**63},
        {"precision": "fp8"},
        {"seed_rows": 0},
        {"engine": "spark"},
        {"workers": 0},
        {"threads": 0},
        {"device": "tpu"},
        {"device": "cuda:x"},
    ],
)
def test_impossible_values_are_refused_by_name_and_value(options) -> None:
    [(name, value)] = options.items()
    with pytest.raises(ConfigError, match=f"^{name}.*: .*got ") as refusal:
        configure(options)
    assert repr(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lam": 1.0, "temperature": 2.0}, "temperature or lam, not both"),
        ({"objective": "kmeans", "temperature": 2.0}, "kmeans has no temperature"),
        ({"objective": "kmeans", "lam": 2.0}, "kmeans has no temperature"),
    ],
)
def test_contradictions_are_refused(options, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        configure(options)


@pytest.mark.parametrize(
    ("given_", "kept", "fraction"),
    [
        ("auto", "auto", None),
        (2, 2.0, None),
        ("0.5", 0.5, None),
        ("0.1Tc", "0.1Tc", 0.1),
        (" 0.10 * Tc ", "0.1Tc", 0.1),
        ("1e-2Tc", "0.01Tc", 0.01),
    ],
)
def test_a_temperature_is_auto_a_number_or_a_fraction(given_, kept, fraction) -> None:
    config = FitConfig(temperature=given_)
    assert config.temperature == kept
    assert config.fraction_of_tc() == fraction


@given(st.floats(1e-6, 10))
def test_a_fraction_survives_the_way_through_text_to_six_digits(fraction: float) -> None:
    config = FitConfig(temperature=f"{fraction!r}Tc")
    assert config.fraction_of_tc() == pytest.approx(fraction, rel=1e-5)
    assert FitConfig(**config.model_dump()) == config


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        FitConfig().clusters = 3  # type: ignore[misc]


def test_yaml_keys_are_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("# raydkm fit --config fit.yaml\nclusters: 4\nmax-steps: 7\nn_init: 2\ntemperature: 0.1Tc\n")
    assert read_yaml(path) == {"clusters": 4, "max_steps": 7, "n_init": 2, "temperature": "0.1Tc"}


@pytest.mark.parametrize(
    ("text", "told"), [("- 1\n- 2", "found list"), ("", "found NoneType"), ("a: [", "cannot read")]
)
def test_yaml_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "fit.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as refusal:
        read_yaml(tmp_path / "fit.yaml")
    assert "fit.yaml" in str(refusal.value)


def test_a_missing_yaml_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("clusters: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match=r"evil\.yaml"):
        read_yaml(tmp_path / "evil.yaml")
