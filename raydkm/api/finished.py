"""What a run has saved: a checkpoint, or a model that makes another start of the same fit unnecessary."""

from __future__ import annotations

import logging
import os

from raydkm.config import FeatureConfig, FitConfig
from raydkm.data.parquet import ParquetTable
from raydkm.deep.saved import Origin, saved_in
from raydkm.engine.checkpoint import CheckpointFile, check_same
from raydkm.errors import ConfigError, ModelError, RaydkmError
from raydkm.model import Model, load

logger = logging.getLogger("raydkm")


def finished_before(
    out: str | os.PathLike,
    run_dir: str,
    config: FitConfig,
    made: FeatureConfig,
    table: ParquetTable,
    start: str | None,
) -> Model | None:
    """The model in `out`, if the run in `run_dir` has made it, of these parameters and files; None if it is another's.

    Parameters
    ----------
    out, run_dir : path
    config : FitConfig
    made : FeatureConfig
    table : ParquetTable
    start : str or None
        Digest of the initial prototypes that were given.

    Raises
    ------
    ConfigError
        If the run has made it of other parameters, initial prototypes or files.
    ModelError
        If there is no model in `out`, or a damaged one (with an encoder it is another's).
    """
    model = (_of_training if made.trains else _of_steps)(out, run_dir, config, made, start)
    if model is None:
        return None
    if model.record["files"] != table.digest:
        raise ConfigError(
            f"{out} was made by this run, of files that have changed since, or of others; name another run and output, "
            "or pass overwrite (--overwrite)"
        )
    if model.config != config:  # in what only ends a fit
        return None
    logger.info("%s was made by this run already, of the same parameters and files; nothing to do", out)
    return model


def can_resume(run_dir: str) -> bool:
    """Whether a run has saved anything that a fit resumes from."""
    try:
        return CheckpointFile(run_dir, every=0).load() is not None or saved_in(run_dir) is not None
    except RaydkmError:
        return False


def _of_steps(
    out: str | os.PathLike, run_dir: str, config: FitConfig, made: FeatureConfig, start: str | None
) -> Model | None:
    """The model, if the run's last step is its."""
    saved = CheckpointFile(run_dir, every=0).load()
    if saved is None:
        return None
    model = load(out)
    if (model.record["fingerprint"], model.record["steps"]) != (saved.fingerprint, saved.state.step):
        return None
    saved.check_config(config)
    saved.check_start(start)
    check_same(model.made.model_dump(mode="json"), made)
    return model


def _of_training(
    out: str | os.PathLike, run_dir: str, config: FitConfig, made: FeatureConfig, start: str | None
) -> Model | None:
    """The model, if all of its training is the run's."""
    found = saved_in(run_dir)
    if found is None:
        return None
    saved, before = found
    try:
        model = load(out, encoder=made.encoder if ":" in made.encoder else None)
    except ModelError:  # of another kind of encoder, say: in any case not of this run
        return None
    if (model.record["fingerprint"], model.record.get("training")) != (before.fingerprint, saved.history):
        return None
    Origin(config, made, before.fingerprint, start).check(before)
    return model
