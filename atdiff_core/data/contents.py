"""What a set of shards holds, and how a source was turned into it."""

from typing import Annotated, Literal

from pydantic import Field

from atdiff_core.config import Config

ImageFormat = Literal["png", "webp", "jpg"]


class Contents(Config):
    """What every set tells about its samples.

    Attributes:
        name: The source's name.
        licence: Under which terms the source may be used.
        classes: Name of each label; empty if the samples have none, and every label reads as 0.
        source_key: sha256 that changes when the source's samples do.
        resolution: Side of the images, in pixels.
        image_channels: 1 (grey) or 3 (colour).
    """

    name: str
    licence: str
    classes: tuple[str, ...]
    source_key: str
    resolution: Annotated[int, Field(ge=1)]
    image_channels: Literal[1, 3]


class Recipe(Config):
    """How samples were encoded, ordered and cut into tars.

    Attributes:
        image_format: ``png``, ``webp`` (lossless) or ``jpg``.
        jpg_quality: 1 to 100; it acts on ``jpg`` alone, whose colours are not subsampled.
        samples_per_unit: Consecutive samples that are written together, in one go.
        samples_per_shard: Into tars of at most how many a unit is cut.
        seed: Of the order in which the samples were written.
    """

    image_format: ImageFormat
    jpg_quality: Annotated[int, Field(ge=1, le=100)]
    samples_per_unit: Annotated[int, Field(ge=1)]
    samples_per_shard: Annotated[int, Field(ge=1)]
    seed: int


class ShardSettings(Contents):
    """All that decides the bytes of a set of images that atdiff writes."""

    recipe: Recipe

    def differences(self, asked: "ShardSettings") -> str:
        """Every setting that differs, as ``seed is 0, asked for 1``; empty if none does."""
        pairs = [(name, getattr(self, name), getattr(asked, name)) for name in Contents.model_fields]
        pairs += [(name, getattr(self.recipe, name), getattr(asked.recipe, name)) for name in Recipe.model_fields]
        different = (f"{name} is {mine!s:.70}, asked for {other!s:.70}" for name, mine, other in pairs if mine != other)
        return "; ".join(different)


class Captions(Config):
    """The ``txt`` members of a set.

    Attributes:
        layout: ``lines``: every line is a caption of its own. ``whole``: a member is one caption.
        samples: Samples that have at least one caption.
        total: Captions of all samples.
    """

    layout: Literal["lines", "whole"]
    samples: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]


class Latents(Config):
    """What the samples of a set of latents are: the ``latent`` tensor of each ``safetensors`` member.

    A latent is the posterior's mean z of an autoencoder, scaled for training:
    ``(z - shift) * scaling``. The set's ``resolution`` and ``image_channels`` are those of
    the images that were encoded.

    Attributes:
        autoencoder: Folder or hub id of the ``AutoencoderKL``, as it was given.
        autoencoder_key: sha256 of its configuration and weights.
        channels: Of a latent.
        side: Height and width of a latent.
        scaling: The autoencoder's ``scaling_factor``.
        shift: The autoencoder's ``shift_factor``, 0 where it has none.
        dtype: In which the latents are stored.
    """

    autoencoder: str
    autoencoder_key: str
    channels: Annotated[int, Field(ge=1)]
    side: Annotated[int, Field(ge=1)]
    scaling: Annotated[float, Field(gt=0)]
    shift: float
    dtype: Literal["float32", "bfloat16"]
