"""What the features of rows are, and how they are learned."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raydkm.config.base import Frozen, number
from raydkm.features.stages import Stage, parse

_ENCODERS = ("identity", "mlp", "conv", "tcn")


class FeatureConfig(Frozen):
    """What rows are made into before they are clustered, and how that is learned."""

    shape: str | None = Field(
        None,
        description="Shape of a row: channels x height x width of images (1x28x28), channels x length of series "
        "(3x100); encoded images (PNG, JPEG, ...) are resized to it.",
    )
    map: str | None = Field(
        None,
        description="Stages, in turn: center, standardize, whiten, pca:D, lda[:D], rff:D (random Fourier features), "
        "nystrom:D, unit; and, where no encoder follows, at the end neighbours:HOPS, by which a fit averages features "
        "over their nearest neighbours.",
    )
    encoder: str = Field(
        "identity",
        description="Network that makes features: identity, mlp, conv, tcn, or package.module:build, a function of the "
        "row's shape that returns a torch.nn.Module.",
    )
    encoder_args: str | None = Field(
        None, description="Its arguments, as name=value,name=value; numbers of a list are joined by -: channels=32-64."
    )
    feature_map: str | None = Field(
        None,
        description="Stages, as those of map, of an encoder's features for clustering them in a fit; the model's "
        "prototypes are means of the features themselves.",
    )
    view: Literal["auto", "image", "vector", "series"] = Field(
        "auto", description="Kind of random changes of a row that its cluster should not depend on; auto: by shape."
    )
    view_args: str | None = Field(
        None, description="Their amplitudes, as name=value,name=value: rotation=20 (see raydkm/features/views.py)."
    )
    strength: float = Field(1.0, ge=0, description="Factor of all of them.")
    last_strength: float | None = Field(
        None, ge=0, description="Their factor in the last round, which then has half the learning rate."
    )
    pretrain: Literal["none", "contrastive", "autoencoder"] = Field(
        "none",
        description="Training before there are clusters: contrastive (InfoNCE of two views of a row), autoencoder or "
        "none.",
    )
    pretrain_epochs: int = Field(8, ge=0, description="Epochs of it.")
    contrast_temperature: float = Field(0.3, gt=0, description="Temperature of InfoNCE.")
    positives: int = Field(
        0,
        ge=0,
        description="contrastive: afterwards, for positive_epochs, a row's second view is of one of so many nearest "
        "neighbours by its features, or of itself.",
    )
    positive_epochs: int = Field(3, ge=1, description="Epochs of that.")
    neighbours: int = Field(
        15, ge=1, description="Nearest neighbours of a row, for neighbours:HOPS of a map and for agreement."
    )
    agreement: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A row is learned from in a round only if so large a part of its neighbours are of its cluster.",
    )
    rounds: int = Field(1, ge=0, description="Rounds of training on targets: the clusters of the features so far.")
    epochs: int = Field(6, ge=1, description="Epochs of each round.")
    loss: Literal["cross-entropy", "sr-kmeans"] = Field(
        "cross-entropy",
        description="Of a round: cross-entropy of the targets and a linear head's posteriors of a view; or sr-kmeans, "
        "the paper's: distances to prototypes, with the reconstruction of the row.",
    )
    reconstruction: float = Field(1.0, ge=0, description="sr-kmeans: weight of the reconstruction.")
    denoising: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="autoencoder, sr-kmeans: part of a row's numbers that are set to zero before it is encoded.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="cross-entropy: part of the targets that is spread over all clusters."
    )
    heads: int = Field(
        1, ge=1, description="Clusterings that are learned at the same time; that of least loss is kept."
    )
    overclustering: int = Field(
        1, ge=1, description="If above 1, further heads, as many as heads, learn so many times as many clusters."
    )
    batch: int = Field(512, ge=2, description="Rows of a step of training, of all workers together.")
    learning_rate: float = Field(1e-3, gt=0, description="Of AdamW, at its highest.")
    weight_decay: float = Field(1e-4, ge=0, description="Of AdamW.")
    amp: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of training: fp32, bf16, or auto: bf16 on GPUs and CPUs with AMX, else fp32."
    )

    @field_validator("shape", mode="before")
    @classmethod
    def _readable_shape(cls, shape: Any) -> Any:
        if shape is None:
            return None
        text = "x".join(map(str, shape)) if isinstance(shape, list | tuple) else str(shape)
        if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*){1,2}", text):
            raise ValueError("must be channels x height x width, or channels x length, such as 1x28x28")
        return text

    @field_validator("map", "feature_map")
    @classmethod
    def _known_stages(cls, stages: str | None) -> str | None:
        return None if stages is None else ",".join(map(str, parse(stages)))

    @field_validator("encoder_args", "view_args", mode="before")
    @classmethod
    def _readable_arguments(cls, given: Any) -> Any:
        if isinstance(given, dict):
            given = ",".join(
                f"{name}={'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
                for name, value in given.items()
            )
        if given is not None:
            arguments_of(given)
        return given

    @field_validator("encoder")
    @classmethod
    def _known_encoder(cls, encoder: str) -> str:
        if encoder not in _ENCODERS and not re.fullmatch(r"[\w.]+:\w+", encoder):
            raise ValueError(f"must be one of {', '.join(_ENCODERS)}, or package.module:function")
        return encoder

    @model_validator(mode="after")
    def _used(self) -> FeatureConfig:
        for names, partner, applies in _PARTNERS:
            if not applies(self) and (idle := [name for name in names if self._is_set(name)]):
                raise ValueError(f"{idle[0]} goes with {partner}")
        if self.trains and any(stage.name == "neighbours" for stage in _stages(self.map)):
            raise ValueError("map: neighbours is for what is clustered; with an encoder it goes to feature_map")
        if self.trains and self.pretrain == "none" and self.rounds == 0:
            raise ValueError(f"encoder {self.encoder} would not be trained: give pretrain or rounds")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def trains(self) -> bool:
        """Whether there is a network to train."""
        return self.encoder != "identity"

    @property
    def has_head(self) -> bool:
        """Whether a linear head is trained, which then assigns rows."""
        return self.trains and self.rounds > 0 and self.loss == "cross-entropy"

    @property
    def plain(self) -> bool:
        """Whether features are the rows as they are."""
        return not self.trains and self.map is None

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The shape of a row as numbers."""
        return None if self.shape is None else tuple(map(int, self.shape.split("x")))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The maps before an encoder."""
        return tuple(stage for stage in _stages(self.map) if stage.name != "neighbours")

    @property
    def feature_stages(self) -> tuple[Stage, ...]:
        """The maps after it."""
        return tuple(stage for stage in _stages(self.feature_map) if stage.name != "neighbours")

    @property
    def hops(self) -> int:
        """How often a fit averages over neighbours."""
        both = _stages(self.map) + _stages(self.feature_map)
        return sum(stage.number or 0 for stage in both if stage.name == "neighbours")


#: Options, what they go with, and whether that is there: an option that would be ignored is refused.
_PARTNERS: tuple[tuple[tuple[str, ...], str, Callable[[FeatureConfig], bool]], ...] = (
    (
        tuple(name for name in FeatureConfig.model_fields if name not in ("shape", "map", "encoder", "neighbours")),
        "an encoder",
        lambda made: made.trains,
    ),
    (
        ("neighbours",),
        "agreement, or neighbours:HOPS at the end of map or feature_map",
        lambda made: made.hops > 0 or made.agreement > 0,
    ),
    (("pretrain_epochs",), "pretrain", lambda made: made.pretrain != "none"),
    (("positives", "contrast_temperature"), "pretrain contrastive", lambda made: made.pretrain == "contrastive"),
    (("positive_epochs",), "positives", lambda made: made.positives > 0),
    (
        (
            "epochs",
            "loss",
            "heads",
            "overclustering",
            "agreement",
            "last_strength",
            "label_smoothing",
            "reconstruction",
        ),
        "rounds",
        lambda made: made.rounds > 0,
    ),
    (("reconstruction",), "loss sr-kmeans", lambda made: made.loss == "sr-kmeans"),
    (
        ("denoising",),
        "pretrain autoencoder, or loss sr-kmeans",
        lambda made: made.pretrain == "autoencoder" or made.loss == "sr-kmeans",
    ),
    (  # sr-kmeans trains towards the prototypes themselves
        ("heads", "overclustering", "label_smoothing", "feature_map"),
        "loss cross-entropy",
        lambda made: made.loss == "cross-entropy",
    ),
    (
        ("view", "view_args", "strength", "last_strength"),
        "pretrain contrastive, or loss cross-entropy",
        lambda made: made.pretrain == "contrastive" or made.has_head,
    ),
)


def _stages(text: str | None) -> tuple[Stage, ...]:
    return () if text is None else parse(text)


#: Rows are clustered as they are.
AS_THEY_ARE = FeatureConfig()


def arguments_of(text: str | None) -> dict[str, Any]:
    """The values in ``name=value,name=value``: numbers, lists of them joined by -, true and false, else words.

    Raises
    ------
    ValueError
    """
    found: dict[str, Any] = {}
    for part in [] if text is None else text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ValueError(f"must be name=value,name=value; {part.strip()!r} is not")
        if re.fullmatch(r"[0-9]+(-[0-9]+)+", value):
            found[name] = tuple(map(int, value.split("-")))
        elif re.fullmatch(r"-?[0-9]+", value):
            found[name] = int(value)
        elif (real := number(value)) is not None:
            found[name] = real
        else:
            found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found
