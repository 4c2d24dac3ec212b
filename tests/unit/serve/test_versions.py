from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydkm.serve.errors import RefusalError
from raydkm.serve.versions import Choice


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("models/one", "models/deep/two", "secret"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "secret", tmp_path / "models" / "link")
    return tmp_path / "models"


def test_a_reload_holds_until_another_model_is_configured(models: Path) -> None:
    one, other = (Choice(str(models)) for _ in range(2))  # two replicas
    for choice in (one, other):
        choice.configure(str(models / "one"))
        assert choice.path() == str(models / "one")
    one.tell(one.resolve("deep/two"))
    assert other.path() == str(models / "deep" / "two")
    other.configure(str(models / "deep"))
    assert other.path() == str(models / "deep")


@pytest.mark.parametrize("name", ["link", "..", "../secret", "/", "", "one/../..", "absent", "\0"])
def test_no_name_leads_out_of_the_directory(models: Path, name: str) -> None:
    with pytest.raises(RefusalError):
        Choice(str(models)).resolve(name)


def test_without_a_directory_nothing_is_reloaded() -> None:
    with pytest.raises(RefusalError, match="no directory"):
        Choice(None).resolve("one")
