"""A small CLIP: two towers, one for pictures and one for sentences, trained to agree on pairs."""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from atdiff_core.clip import CLIP, image_features, text_features
from atdiff_core.config import Config
from atdiff_core.data.batch import Batch
from atdiff_core.data.stream import ShardSet
from atdiff_core.hub import quiet_transformers
from atdiff_core.pretraining.augmentation import mirrored, shifted
from atdiff_core.pretraining.loop import Schedule
from atdiff_core.pretraining.words import trained_tokenizer
from atdiff_core.randomness import Randomness
from atdiff_core.text_encoders import ENCODER, TOKENIZER


class ClipShape(Config):
    """Two transformers of the same width.

    Attributes:
        resolution: Side of the pictures, in pixels.
        patch: Side of a patch, which is one token of a picture.
        vocabulary: Most tokens of the text.
        tokens: Places of a sentence.
        width: Of both towers and of the common space.
        layers: Of each tower.
        heads: Of each layer.
    """

    resolution: Annotated[int, Field(ge=1)]
    patch: Annotated[int, Field(ge=1)] = 4
    vocabulary: Annotated[int, Field(ge=600)] = 1024
    tokens: Annotated[int, Field(ge=4)] = 32
    width: Annotated[int, Field(ge=8)] = 64
    layers: Annotated[int, Field(ge=1)] = 3
    heads: Annotated[int, Field(ge=1)] = 4

    def build(self, tokenizer: Any, *, seed: int) -> Any:
        """The network with weights drawn by the seed; the same seed gives the same weights."""
        from transformers import CLIPConfig, CLIPModel

        if self.resolution % self.patch:
            raise ValueError(f"the resolution must be a multiple of the patch, got {self.resolution} and {self.patch}")
        tower = {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "projection_dim": self.width,
        }
        words = {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": self.tokens,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = CLIPConfig(
            text_config=tower | words,
            vision_config=tower | {"image_size": self.resolution, "patch_size": self.patch},
            projection_dim=self.width,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return CLIPModel(config)


class ClipRun(Config):
    """Everything that decides the weights a CLIP ends with.

    Attributes:
        shift: Most pixels by which a picture is moved, so that a small set lasts longer.
    """

    shape: ClipShape
    shift: Annotated[int, Field(ge=0)] = 2
    schedule: Schedule


class ClipTask:
    """The symmetric contrastive loss of CLIP (Radford et al., arXiv:2103.00020), on pairs of the stream.

    Samples with the same sentence count as right answers for each other, where the original,
    with 400 million pairs, need not care.
    """

    def __init__(self, run: ClipRun, tokenizer: Any) -> None:
        self._run, self._tokenizer = run, tokenizer

    def losses(self, network: nn.Module, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The mean over both directions, and the share of pictures that find a right sentence."""
        module: Any = network
        told = [place for place, caption in enumerate(batch.captions) if caption]
        if len(told) < 2:
            raise ValueError(f"a minibatch of {len(batch.captions)} samples has {len(told)} captions, 2 are needed")
        images = shifted(mirrored(batch.images, randomness), randomness, pixels=self._run.shift)[told]
        captions = [batch.captions[place] for place in told]
        words = tokenized(self._tokenizer, captions)
        agreement = module(
            input_ids=words.input_ids.to(module.device),
            attention_mask=words.attention_mask.to(module.device),
            pixel_values=images.to(module.device),
        ).logits_per_image
        known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        sentence = torch.tensor([known[caption] for caption in captions], device=agreement.device)
        same = (sentence[:, None] == sentence).float()
        right = same / same.sum(dim=1, keepdim=True)
        loss = (F.cross_entropy(agreement, right) + F.cross_entropy(agreement.T, right)) / 2
        found = same.gather(1, agreement.argmax(dim=1, keepdim=True)).mean()
        return {"loss": loss, "found": found}


def tokenized(tokenizer: Any, captions: list[str]) -> Any:
    """Ids and mask of captions, ``[captions, tokens]``, cut and padded to the tokenizer's length."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")


def tokenizer_for(shards: ShardSet, shape: ClipShape) -> Any:
    """A tokenizer learned from all captions of a set.

    Raises:
        ValueError: If there are none.
    """
    captions = [caption for each in shards.captions() for caption in each]
    if not captions:
        raise ValueError(f"{shards.path}: no sample has a caption, so no sentence can be learned")
    return trained_tokenizer(captions, vocabulary=shape.vocabulary, tokens=shape.tokens)


def save_clip(network: Any, tokenizer: Any, shape: ClipShape, folder: Path) -> None:
    """Write both towers with their processor, and the text tower alone as a pipeline keeps it."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTextModel

    network.eval()
    side = shape.resolution
    pictures = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    with quiet_transformers():
        network.save_pretrained(folder / CLIP)
        CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder / CLIP)
        CLIPTextModel.from_pretrained(folder / CLIP).save_pretrained(folder / ENCODER)
        tokenizer.save_pretrained(folder / TOKENIZER)


@torch.inference_mode()
def retrieval(network: Any, tokenizer: Any, shards: ShardSet, *, batch_size: int = 128) -> dict[str, float]:
    """Among all pictures and sentences of a set, how often the right sentence comes first, or among five.

    Returns:
        ``top1`` and ``top5``, shares of the pictures, and ``pairs``, their number.
    """
    network.eval()
    pictures, sentences, captions = [], [], list(shards.captions())
    for number, images in enumerate(shards.images(batch_size=batch_size)):
        mine = captions[number * batch_size :][: len(images)]
        told = [place for place, each in enumerate(mine) if each]
        if not told:
            continue
        words = tokenized(tokenizer, [mine[place][0] for place in told])
        pictures.append(image_features(network, images[told].to(network.device)))
        sentences.append(text_features(network, words.input_ids, words.attention_mask))
    agreement = torch.cat(pictures) @ torch.cat(sentences).T
    right = agreement.diagonal()[:, None]
    before = (agreement > right).sum(dim=1).float()
    shares = {"top1": float((before < 1).float().mean()), "top5": float((before < 5).float().mean())}
    return shares | {"pairs": float(len(agreement))}
