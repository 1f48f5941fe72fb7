"""Low-rank updates of a text-conditional U-Net instead of its weights, by peft."""

from typing import Any

import torch
from torch import Tensor, nn

from atdiff_core.networks import NoisePredictor, UNet
from atdiff_core.text_networks import NEW_IN_A_STUDENT, TextUNet

ADAPTER = "student"
ADAPTED = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""Layers that get an update: those of diffusers' own script for latent consistency by LoRA."""


def lora_rank(network: UNet | TextUNet) -> int:
    """Rank of the updates; zero where all weights learn."""
    return network.lora_rank if isinstance(network, TextUNet) else 0


def adapt(network: NoisePredictor, rank: int, *, seed: int) -> None:
    """Freeze a network in place and give it updates of this rank, which are zero at first.

    The embedding of the guidance scale goes on learning in full: no base model has one to adapt.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError(f"lora_rank={rank} needs peft: pip install 'atdiff[text]', or set lora_rank=0") from None
    network.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ADAPTED), init_lora_weights=True)
        network.unet.add_adapter(settings, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():
        if name.startswith(NEW_IN_A_STUDENT):
            parameter.requires_grad_(True)


def without_updates(network: NoisePredictor, shape: TextUNet) -> NoisePredictor:
    """A network of this shape that computes the same with weights alone."""
    plain = shape.build()
    plain.load_state_dict(merged(network))
    return plain.to(next(network.parameters()).device).eval()


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The weights with the updates added to them, under the names of a network without any."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    updates = {f"{name}.weight": layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
    plain = {
        name.replace(".base_layer.", "."): value for name, value in network.state_dict().items() if "lora_" not in name
    }
    return {name: value + updates[name].to(value) if name in updates else value for name, value in plain.items()}
