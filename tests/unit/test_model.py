from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

import raydkm
from raydkm.errors import ModelError, OutputError
from raydkm.model import Model

TENSORS, HISTORY, DESCRIPTION = "prototypes.safetensors", "history.jsonl", "model.json"


@pytest.fixture(scope="module")
def model() -> Model:
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    return raydkm.fit(x, clusters=4, balance=0.5, temperature="0.3Tc", max_steps=5)


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "good"
    model.save(place)
    return place


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def describe(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description, with its checksum, as a faulty writer would."""
    described = json.loads((place / DESCRIPTION).read_text())
    del described["sha256"][DESCRIPTION]
    change(described)
    if isinstance(described.get("sha256"), dict):
        content = json.dumps(described, sort_keys=True).encode()
        described["sha256"][DESCRIPTION] = hashlib.sha256(content).hexdigest()
    (place / DESCRIPTION).write_text(json.dumps(described))


@pytest.mark.parametrize(("was", "now"), [('"dim": 3', '"dim": 4'), ('"steps": 5', '"steps": 6')])
def test_a_description_edited_by_hand_is_refused(copy: Path, was: str, now: str) -> None:
    text = (copy / DESCRIPTION).read_text()
    assert was in text
    (copy / DESCRIPTION).write_text(text.replace(was, now))
    with pytest.raises(ModelError, match="checksum differs"):
        raydkm.load(copy)


def forge(place: Path, name: str, content: bytes) -> None:
    """Replace a file and its checksum too, as a faulty writer would."""
    (place / name).write_bytes(content)
    describe(place, lambda described: described["sha256"].update({name: hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("objective", ["kmeans", "soft-kmeans", "sr-kmeans"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_model_comes_back_as_it_was_saved(tmp_path: Path, objective: str, metric: str) -> None:
    x = np.random.default_rng(1).standard_normal((100, 3)).astype(np.float32)
    model = raydkm.fit(x, clusters=3, objective=objective, metric=metric, max_steps=4)
    model.save(tmp_path / "model")
    found = raydkm.load(tmp_path / "model")
    for name in ("prototypes", "shift", "log_s", "counts"):
        one, other = getattr(found, name), getattr(model, name)
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert found.config == model.config
    assert found.temperature == model.temperature
    assert found.record == model.record
    assert found.history == model.history
    assert found.checksum() == model.checksum()
    np.testing.assert_array_equal(found.cluster_centers, model.cluster_centers)


def test_the_description_tells_what_the_model_is_in_plain_json(saved: Path, model: Model) -> None:
    described = json.loads((saved / DESCRIPTION).read_text())
    assert described["schema_version"] == 2
    assert (described["objective"], described["clusters"], described["dim"]) == ("sr-kmeans", 4, 3)
    assert described["temperature"] == model.temperature
    assert described["config"]["temperature"] == "0.3Tc"
    assert described["record"]["rows"] == 200
    assert {"collapse_temperature", "fingerprint", "versions", "inertia"} <= set(described["record"])
    lines = (saved / HISTORY).read_text().splitlines()
    assert len(lines) == described["record"]["steps"]
    terms = {
        "objective",
        "distortion",
        "marginal_entropy",
        "posterior_entropy",
        "shift",
        "smallest",
        "largest",
        "seconds",
    }
    assert terms <= set(json.loads(lines[0]))


def test_a_reproduced_fit_has_the_same_checksum_and_another_one_another(model: Model) -> None:
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    again = raydkm.fit(x, clusters=4, balance=0.5, temperature="0.3Tc", max_steps=5)
    other = raydkm.fit(x, clusters=4, balance=0.5, temperature="0.3Tc", max_steps=4)
    assert again.checksum() == model.checksum() != other.checksum()


@given(data=st.data(), name=st.sampled_from([TENSORS, HISTORY]))
def test_any_changed_byte_of_tensors_or_history_is_refused(saved: Path, tmp_path: Path, data, name: str) -> None:
    place = Path(shutil.copytree(saved, tmp_path / "model", dirs_exist_ok=True))
    content = bytearray((saved / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (place / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=f"{name}: its checksum differs"):
        raydkm.load(place)


@given(share=st.floats(0, 0.999), name=st.sampled_from([TENSORS, HISTORY, DESCRIPTION]))
def test_a_file_cut_anywhere_is_refused(saved: Path, tmp_path: Path, share: float, name: str) -> None:
    place = Path(shutil.copytree(saved, tmp_path / "model", dirs_exist_ok=True))
    content = (saved / name).read_bytes().rstrip()
    (place / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=name):
        raydkm.load(place)


@given(share=st.floats(0, 0.999))
def test_truncated_tensors_are_refused_whatever_the_checksum_says(saved: Path, tmp_path: Path, share: float) -> None:
    place = Path(shutil.copytree(saved, tmp_path / "model", dirs_exist_ok=True))
    content = (saved / TENSORS).read_bytes()
    forge(place, TENSORS, content[: int(share * len(content))])
    with pytest.raises(ModelError, match="damaged"):
        raydkm.load(place)


@pytest.mark.parametrize("name", [TENSORS, HISTORY, DESCRIPTION])
def test_a_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        raydkm.load(copy)


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none: no model\.json here"):
        raydkm.load(tmp_path / "none")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ModelError, match="file"):
        raydkm.load(tmp_path / "file")


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_schema_version_is_refused(copy: Path, version) -> None:
    describe(copy, lambda described: described.update(schema_version=version))
    with pytest.raises(ModelError, match=f"schema version {version}, this raydkm reads versions up to 2"):
        raydkm.load(copy)


@pytest.mark.parametrize("name", [TENSORS, HISTORY])
def test_a_changed_checksum_is_refused(copy: Path, name: str) -> None:
    describe(copy, lambda described: described["sha256"].update({name: "0" * 64}))
    with pytest.raises(ModelError, match=f"{name}: its checksum differs"):
        raydkm.load(copy)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no checksums": lambda d: d.pop("sha256"),
    "checksums of no file": lambda d: d.update(sha256=[]),
    "no config": lambda d: d.pop("config"),
    "an unknown parameter": lambda d: d["config"].update(colour="red"),
    "an impossible parameter": lambda d: d["config"].update(clusters=0),
    "another number of clusters": lambda d: d["config"].update(clusters=5),
    "an unknown objective": lambda d: d["config"].update(objective="mi"),
    "no temperature": lambda d: d.pop("temperature"),
    "a temperature in words": lambda d: d.update(temperature="warm"),
    "a negative temperature": lambda d: d.update(temperature=-1.0),
    "a temperature of zero for soft clusters": lambda d: d.update(temperature=0.0),
    "a temperature that is not a number": lambda d: d.update(temperature=float("nan")),
    "an infinite temperature": lambda d: d.update(temperature=float("inf")),
    "no record": lambda d: d.pop("record"),
    "a record of no names": lambda d: d.update(record=7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_impossible_description_is_refused(copy: Path, change: str) -> None:
    describe(copy, CHANGES[change])
    with pytest.raises(ModelError):
        raydkm.load(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"7", b"\xff\xfe", b"{", b'{"schema_version": 1}'])
def test_a_description_that_is_none_is_refused(copy: Path, content: bytes) -> None:
    (copy / DESCRIPTION).write_bytes(content)
    with pytest.raises(ModelError):
        raydkm.load(copy)


@pytest.mark.parametrize("name", ["prototypes", "shift", "log_s", "counts"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.fill_(torch.nan),
        lambda t: t.fill_(torch.inf),
        lambda t: t[:-1],
        lambda t: t.flatten()[:1].squeeze(),
        lambda t: t[None],
        lambda t: t[:0],
        None,
    ],
    ids=["nan", "infinite", "one too few", "a scalar", "one axis more", "empty", "absent"],
)
def test_impossible_tensors_are_refused_whatever_the_checksum_says(copy: Path, name: str, damage) -> None:
    tensors = load((copy / TENSORS).read_bytes())
    tensor = tensors.pop(name)
    if damage is not None:
        tensors[name] = damage(tensor).contiguous()
    forge(copy, TENSORS, save(tensors))
    with pytest.raises(ModelError):
        raydkm.load(copy)


def test_an_unknown_tensor_is_refused(copy: Path) -> None:
    forge(copy, TENSORS, save(load((copy / TENSORS).read_bytes()) | {"covariance": torch.ones(3)}))
    with pytest.raises(ModelError, match="damaged"):
        raydkm.load(copy)


def test_a_history_that_is_no_json_is_refused(copy: Path) -> None:
    forge(copy, HISTORY, b"{}\nstep 2\n")
    with pytest.raises(ModelError, match="damaged"):
        raydkm.load(copy)


def test_a_pickle_is_never_loaded(copy: Path) -> None:
    torch.save({"prototypes": torch.ones(4, 3)}, copy / "pickle")
    forge(copy, TENSORS, (copy / "pickle").read_bytes())
    with pytest.raises(ModelError, match="damaged"):
        raydkm.load(copy)


def test_an_exception_while_saving_leaves_nothing(model: Model, tmp_path: Path) -> None:
    unwritable = replace(model, record={"inertia": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        unwritable.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_overwriting_leaves_the_old_model(model: Model, copy: Path) -> None:
    unwritable = replace(model, record={"inertia": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        unwritable.save(copy, overwrite=True)
    assert raydkm.load(copy).checksum() == model.checksum()
    assert list(copy.parent.iterdir()) == [copy]


def test_an_existing_model_is_kept_unless_overwriting_is_asked_for(model: Model, copy: Path) -> None:
    other = replace(model, temperature=2.5)
    with pytest.raises(OutputError, match="exists already"):
        other.save(copy)
    assert raydkm.load(copy).temperature == model.temperature
    other.save(copy, overwrite=True)
    assert raydkm.load(copy).temperature == 2.5
    assert list(copy.parent.iterdir()) == [copy]


def test_a_model_of_the_first_schema_is_read_and_answers(copy: Path) -> None:
    """Its prototypes were of float32."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / TENSORS)
    single = {name: t.float() if name in ("prototypes", "weights", "bias") else t for name, t in tensors.items()}
    save_file(single, copy / TENSORS)
    digest = hashlib.sha256((copy / TENSORS).read_bytes()).hexdigest()
    describe(
        copy, lambda described: (described["sha256"].update({TENSORS: digest}), described.update(schema_version=1))
    )
    model = raydkm.load(copy)
    assert model.prototypes.dtype == torch.float64
    rows = model.cluster_centers
    assert model.predict(rows).tolist() == list(range(model.clusters))
