from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raydkm
from raydkm.config import FitConfig
from raydkm.engine.checkpoint import Checkpoint, CheckpointFile
from raydkm.errors import ConfigError, ModelError
from raydkm.objectives import State

OPTIONS = {"clusters": 40, "tol": 0, "max_steps": 60, "n_init": 1, "temperature": "0.3Tc", "balance": 0.5}


def checkpoint(step: int = 3) -> Checkpoint:
    rng = np.random.default_rng(0)
    tensors = [torch.from_numpy(rng.standard_normal(shape)) for shape in ((4, 3), 4, 4, 4)]
    state = State(step, *tensors, 0.7)
    return Checkpoint(
        state, [{"step": 1, "objective": 0.1 + 0.2}], {"init": "random"}, FitConfig().model_dump(mode="json"), "f"
    )


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    file = CheckpointFile(str(tmp_path / "new" / "run"), every=0)
    assert file.load() is None
    for step in (3, 4):
        file.save(checkpoint(step))
    found = file.load()
    assert found is not None
    assert found.state.step == 4
    assert torch.equal(found.state.prototypes, checkpoint().state.prototypes)
    assert torch.equal(found.state.log_s, checkpoint().state.log_s)
    assert torch.equal(found.state.bias, checkpoint().state.bias)
    assert torch.equal(found.state.shares, checkpoint().state.shares)
    assert found.state.objective == 0.7
    assert (found.history, found.config) == (checkpoint().history, checkpoint().config)
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    file = CheckpointFile(f"file://{tmp_path}", every=0)
    file.save(checkpoint())
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        file.load()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CheckpointFile(str(tmp_path), every=0)
    file.save(checkpoint(3))
    (tmp_path / "checkpoint.safetensors.partial").mkdir()  # in the way
    file.save(checkpoint(4))
    assert "without a checkpoint of step 4" in caplog.text
    assert (saved := file.load()) is not None
    assert saved.state.step == 3


def test_a_run_directory_that_no_file_system_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="run_dir"):
        CheckpointFile("nowhere://bucket/run", every=0)


def test_other_parameters_or_data_are_refused_with_the_difference_named() -> None:
    saved = checkpoint()
    saved.check_config(FitConfig(max_steps=7))
    saved.check_data("f")
    with pytest.raises(ConfigError, match=r"balance 0\.0, not 0\.5"):
        saved.check_config(FitConfig(balance=0.5))
    with pytest.raises(ConfigError, match="other data"):
        saved.check_data("g")


def test_an_option_that_there_was_not_yet_had_its_default() -> None:
    saved = checkpoint()
    del saved.config["anneal"]
    saved.check_config(FitConfig())
    with pytest.raises(ConfigError, match="anneal 0, not 3"):
        saved.check_config(FitConfig(anneal=3))


def test_a_fit_that_was_cut_short_goes_on_to_the_same_bits(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=500, dim=4, clusters=5)
    whole = raydkm.fit(x, **OPTIONS)
    run = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0}
    raydkm.fit(x, **{**OPTIONS, "max_steps": 11}, **run)
    resumed = raydkm.fit(x, **OPTIONS, **run)
    assert resumed.checksum() == whole.checksum()
    assert [e["objective"] for e in resumed.history] == [e["objective"] for e in whole.history]
    with pytest.raises(ConfigError, match="clusters 40, not 39"):
        raydkm.fit(x, **{**OPTIONS, "clusters": 39}, **run)
    with pytest.raises(ConfigError, match="other data"):
        raydkm.fit(x[1:], **OPTIONS, **run)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "soft-kmeans", "balance": 1.0, "marginal": [1, 2, 3, 4]},
        {"objective": "soft-kmeans", "temperature": "0.3Tc", "min_share": 0.24, "max_share": 0.26},
        {"objective": "sinkhorn"},
        {"objective": "mi"},
        {"anneal": 4},
    ],
)
def test_whatever_shares_and_temperatures_a_fit_has_it_goes_on_to_the_same_bits(blobs, tmp_path: Path, options) -> None:
    x, _ = blobs(rows=500, dim=4, clusters=5, apart=2.0)
    options = {"clusters": 4, "tol": 0, "objective_tol": 0, **options}
    run = {"run_dir": str(tmp_path / "run"), "checkpoint_every": 0}
    raydkm.fit(x, max_steps=5, **options, **run)
    whole = raydkm.fit(x, max_steps=9, **options)
    resumed = [raydkm.fit(x, max_steps=9, **options, **run) for _ in range(2)]
    assert {model.checksum() for model in resumed} == {whole.checksum()}


def test_a_run_goes_on_only_from_the_prototypes_it_began_with(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4)
    run = {"run_dir": str(tmp_path / "run"), "clusters": 4, "tol": 0}
    short = raydkm.fit(x, init=x[:4], max_steps=2, **run)
    assert raydkm.fit(x, init=x[:4], max_steps=5, **run).history[:2] == short.history
    with pytest.raises(ConfigError, match="started from other initial prototypes; name another run"):
        raydkm.fit(x, init=x[1:5], max_steps=5, **run)


def test_a_settled_fit_started_again_stays_as_it_is(blobs, tmp_path: Path) -> None:
    x, _ = blobs(rows=300, dim=3, clusters=4)
    run = {"run_dir": str(tmp_path / "run"), "clusters": 4}
    assert raydkm.fit(x, **run).checksum() == raydkm.fit(x, **run).checksum()


FIT = """
import sys, numpy as np, raydkm
x = np.random.default_rng(0).standard_normal((20000, 16)).astype(np.float32)
model = raydkm.fit(x, run_dir=sys.argv[1], checkpoint_every=0, **OPTIONS)
print(model.checksum())
"""


@pytest.mark.parametrize("steps", [2, 30])
def test_after_a_kill_the_same_bits_come_out(tmp_path: Path, steps: int) -> None:
    script = tmp_path / "fit.py"
    script.write_text(f"import json\nOPTIONS = json.loads({json.dumps(json.dumps(OPTIONS))})\n{FIT}")
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with subprocess.Popen([sys.executable, script, killed], stderr=subprocess.DEVNULL) as process:
        file = CheckpointFile(str(killed), every=0)
        while process.poll() is None and ((saved := file.load()) is None or saved.state.step < steps):
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    sums = [
        subprocess.run([sys.executable, script, run], capture_output=True, text=True, check=True).stdout
        for run in (killed, undisturbed)
    ]
    assert sums[0] == sums[1]
