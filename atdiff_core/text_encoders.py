"""CLIP text encoders of transformers: sentences to what a text-conditional network attends to."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atdiff_core.hub import HUB_ID, first_line, quiet_transformers
from atdiff_core.weights import add_weights

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
"""Where a diffusers pipeline keeps the two."""
PADDING = ("padding", "truncation")
"""What a call leaves behind in a tokenizer, and what it does not depend on."""


@dataclass(frozen=True)
class TextEncoder:
    """A ``CLIPTextModel`` and the tokenizer that goes with it.

    Attributes:
        name: Folder or hub id.
    """

    name: str
    network: Any
    tokenizer: Any

    @property
    def tokens(self) -> int:
        """Places of a sentence: longer ones are cut, shorter ones padded."""
        return int(self.network.config.max_position_embeddings)

    @property
    def width(self) -> int:
        """Numbers for each token."""
        return int(self.network.config.hidden_size)

    @cached_property
    def key(self) -> str:
        """sha256 of the configuration, the weights in single precision and the tokenizer's rules."""
        config = {name: value for name, value in self.network.config.to_dict().items() if name in _DECIDING}
        digest = hashlib.sha256(json.dumps([config, self._rules()], sort_keys=True).encode())
        add_weights(digest, self.network)
        return digest.hexdigest()

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Last hidden states ``[captions, tokens, width]``, float32 on the CPU.

        They are what ``StableDiffusionPipeline.encode_prompt`` gives: the padding takes part
        unless the encoder's configuration asks for an attention mask.
        """
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        device = self.network.device
        masked = getattr(self.network.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        hidden: Tensor = self.network(tokens.input_ids.to(device), attention_mask=mask)[0]
        return hidden.float().cpu()

    def cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than there are places."""
        lengths = (len(ids) for ids in self.tokenizer(list(captions), verbose=False).input_ids)
        return sum(length > self.tokens for length in lengths)

    def check(self) -> None:
        """Refuse a tokenizer that was made for another encoder.

        Raises:
            ValueError: It knows more tokens than the encoder, or takes sentences of another length.
        """
        known, embedded = len(self.tokenizer), int(self.network.config.vocab_size)
        if known > embedded:
            raise ValueError(
                f"{self.name}: the tokenizer knows {known} tokens, its encoder only {embedded}; "
                "they do not belong together"
            )
        if self.tokenizer.model_max_length != self.tokens:
            raise ValueError(
                f"{self.name}: the tokenizer makes up to {self.tokenizer.model_max_length} tokens of a sentence, "
                f"its encoder takes {self.tokens}; they do not belong together"
            )

    def _rules(self) -> Any:
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return [special, {name: value for name, value in rules.items() if name not in PADDING}]


_DECIDING = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "use_attention_mask", "eos_token_id",
)  # fmt: skip


def load_text_encoder(name: str, *, device: str = "cpu") -> TextEncoder:
    """A text encoder and its tokenizer, ready to use; weights from safetensors only.

    Args:
        name: A folder with both, one of a pipeline that has them in ``text_encoder`` and
            ``tokenizer``, or a hub id of either kind.

    Raises:
        ValueError: If there is none, or the tokenizer does not match the encoder.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(name)
    if folder.is_dir():
        both = [(ENCODER, TOKENIZER)] if (folder / ENCODER).is_dir() else [("", "")]
    elif HUB_ID.fullmatch(name):
        both = [("", ""), (ENCODER, TOKENIZER)]
    else:
        raise ValueError(f"{name}: no such folder of a text encoder, and no id of a hub, owner/name")
    reason = ""
    for encoder, tokenizer in both:
        try:
            with quiet_transformers():
                network = CLIPTextModel.from_pretrained(name, subfolder=encoder, use_safetensors=True)
                words = CLIPTokenizer.from_pretrained(name, subfolder=tokenizer)
        except Exception as error:  # transformers, the hub's client and safetensors each raise their own kinds.
            reason = reason or first_line(error)
            continue
        network = network.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        found = TextEncoder(name, network, words)
        found.check()
        return found
    raise ValueError(f"{name}: no CLIPTextModel in safetensors with its tokenizer can be read there ({reason})")
