"""Images of captions, made by the stock pipeline of diffusers that a folder opens in."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from atdiff_core.config import Config
from atdiff_core.data.prompts import Prompts
from atdiff_core.data.stream import ShardSet
from atdiff_core.files import read_json, sha256_of
from atdiff_core.hub import first_line, quiet_diffusers, quiet_transformers
from atdiff_core.randomness import Randomness, derived_seed

MODEL_INDEX = "model_index.json"
GUIDED, DISTILLED = "StableDiffusionPipeline", "LatentConsistencyModelPipeline"


class TextSampler(Config):
    """How a text-to-image pipeline is run.

    Attributes:
        nfe: Steps of its scheduler. One costs an evaluation of the network, or two where
            classifier-free guidance has to ask twice; ``unet_evaluations`` counts them.
        guidance: Strength w of the guidance as diffusers counts it: 1 is none. A latent
            consistency model is told it, others need both evaluations for it.
    """

    nfe: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=1)] = 7.5

    @property
    def label(self) -> str:
        """Short name of all but the NFE, say ``w7.5``."""
        return f"w{self.guidance:g}"

    @property
    def name(self) -> str:
        """The label with the NFE, say ``w7.5_4``."""
        return f"{self.label}_{self.nfe}"


@dataclass(frozen=True)
class Pairs:
    """Captions to make images of.

    Attributes:
        captions: One an image.
        samples: Whose caption it is: numbers of samples in their set.
    """

    captions: list[str]
    samples: list[int]


def chosen_pairs(shards: ShardSet, count: int, seed: int) -> Pairs:
    """The captions of the first ``count`` captioned samples, in shard order, one of each by the seed.

    A set with fewer is gone through again, with other captions where a sample has several.

    Raises:
        ValueError: If no sample has a caption.
    """
    told = [(number, captions) for number, captions in enumerate(shards.captions()) if captions]
    if not told:
        raise ValueError(f"{shards.path}: no sample has a caption to make an image of")
    chosen = [told[place % len(told)] for place in range(count)]
    captions = [each[derived_seed(seed, "caption", place) % len(each)] for place, (_, each) in enumerate(chosen)]
    return Pairs(captions, [number for number, _ in chosen])


@dataclass(frozen=True)
class TextPipeline:
    """A pipeline of diffusers, ready to use.

    Attributes:
        pipeline: ``StableDiffusionPipeline`` or ``LatentConsistencyModelPipeline``.
        prompts: Embeddings to take instead of asking the pipeline's own text encoder.
    """

    folder: Path
    pipeline: Any
    prompts: Prompts | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``[channels, height, width]``."""
        side = int(self.pipeline.unet.config.sample_size)
        return int(self.pipeline.unet.config.in_channels), side, side

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.latent_shape[1] * int(self.pipeline.vae_scale_factor)

    @torch.inference_mode()
    def images(
        self, captions: Sequence[str], indices: Sequence[int], sampler: TextSampler, *, seed: int
    ) -> tuple[Tensor, int]:
        """Images ``[captions, 3, height, width]`` in [-1, 1] on the CPU, and evaluations of the network an image.

        Args:
            indices: Of the latents: an image depends on its own index and caption, not on those
                made with it.
        """
        pipeline, evaluated = self.pipeline, 0

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            nonlocal evaluated
            evaluated += len(inputs[0])

        latents = Randomness(seed, indices, "latents").normal(self.latent_shape).to(pipeline.device)
        options: dict[str, Any] = {"prompt_embeds": self._embedded(captions)}
        if type(pipeline).__name__ == GUIDED:
            empty = self._embedded([""])
            options["negative_prompt_embeds"] = empty.expand(len(captions), -1, -1)
        hook = pipeline.unet.register_forward_pre_hook(count)
        try:
            made = pipeline(
                num_inference_steps=sampler.nfe,
                guidance_scale=sampler.guidance,
                latents=latents,
                generator=Randomness(seed, indices, "steps").generators(),
                output_type="pt",
                **options,
            ).images
        finally:
            hook.remove()
        return (made.float().cpu() * 2 - 1), evaluated // len(captions)

    def _embedded(self, captions: Sequence[str]) -> Tensor:
        if self.prompts is not None:
            return self.prompts.of(captions).to(self.pipeline.device)
        with quiet_transformers(), quiet_diffusers():  # Both tell at length that a caption is too long.
            embedded: Tensor = self.pipeline.encode_prompt(list(captions), self.pipeline.device, 1, False)[0]
        return embedded


def pipeline_key(folder: Path) -> str:
    """sha256 of all files of a pipeline that decide its images.

    Raises:
        ValueError: If the folder is no text-to-image pipeline that is known here.
    """
    _check_kind(folder)
    known = sorted(json.loads((folder / MODEL_INDEX).read_text()))
    parts = [folder / name for name in known if (folder / name).is_dir()]
    files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
    digest = hashlib.sha256(sha256_of(folder / MODEL_INDEX).encode())
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def open_pipeline(folder: Path, *, device: str = "cpu", prompts: Prompts | None = None) -> TextPipeline:
    """The stock pipeline of a folder, its weights from safetensors only.

    Raises:
        ValueError: If the folder is no text-to-image pipeline that is known here, or incomplete.
    """
    import diffusers

    kind = _check_kind(folder)
    try:
        with quiet_transformers(), quiet_diffusers():
            pipeline = getattr(diffusers, kind).from_pretrained(
                folder, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            )
    except Exception as error:  # diffusers, transformers and safetensors each raise their own kinds.
        raise ValueError(f"{folder}: diffusers cannot open it as a {kind} ({first_line(error)})") from error
    pipeline.set_progress_bar_config(disable=True)
    if prompts is None and pipeline.text_encoder is None:
        raise ValueError(f"{folder}: has no text encoder; give the embeddings of its captions with --prompts")
    with quiet_diffusers():
        return TextPipeline(folder, pipeline.to(device), prompts)


def _check_kind(folder: Path) -> str:
    if not (folder / MODEL_INDEX).is_file():
        raise ValueError(f"{folder}: no {MODEL_INDEX}, so no pipeline of diffusers")
    index = read_json(folder / MODEL_INDEX)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in (GUIDED, DISTILLED):
        raise ValueError(f"{folder}: must be a {GUIDED} or a {DISTILLED}, got {kind!r}")
    return str(kind)
