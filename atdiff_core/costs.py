"""What a network costs, counted by torch on the real model without running it."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from atdiff_core.networks import UNet
from atdiff_core.text_networks import TextUNet

BYTES_PER_PARAMETER = 4 * 5
"""Float32 weights, their gradient, Adam's two moments and the weight average."""

TOKENS = 77
"""Of a prompt: those of CLIP's text encoders."""


@dataclass(frozen=True)
class NetworkCosts:
    """Of one image.

    Attributes:
        parameters: Trainable numbers of the network.
        forward_flops: Floating-point operations of one network evaluation; a multiply-add is two.
        pass_flops: The same of one pass: a forward-backward that reaches weights and input, as
            adversarial training needs it.
        saved_bytes: Float32 activations that the forward keeps for the backward.
    """

    parameters: int
    forward_flops: int
    pass_flops: int
    saved_bytes: int

    def step_bytes(self, batch_size: int) -> int:
        """Memory of one training step: weights and what belongs to them, and the activations."""
        return self.parameters * BYTES_PER_PARAMETER + self.saved_bytes * batch_size


def _condition(network: UNet | TextUNet) -> dict[str, Tensor]:
    """What the diffusers network is told beside image and level."""
    if isinstance(network, TextUNet):
        prompt = {"encoder_hidden_states": torch.zeros(1, TOKENS, network.prompt_width)}
        guidance = {"timestep_cond": torch.zeros(1, network.guidance_width)} if network.guidance_width else {}
        return prompt | guidance
    return {"class_labels": torch.zeros(1, dtype=torch.long)} if network.num_classes else {}


@lru_cache(maxsize=32)
def network_costs(network: UNet | TextUNet) -> NetworkCosts:
    """Counts a forward-backward of one image on torch's meta device: milliseconds, no memory."""
    with torch.device("meta"):
        unet = network.build_unet()
        image = torch.zeros(1, network.image_channels, network.resolution, network.resolution, requires_grad=True)
        timesteps = torch.zeros(1, dtype=torch.long)
        told = _condition(network)
    owned = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved[storage._cdata] = storage.nbytes()
            kept.append(tensor)  # A storage that is freed may give its address to another.
        return tensor

    kept: list[Tensor] = []
    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(note, lambda tensor: tensor):
        output = unet(image, timesteps, **told, return_dict=False)[0]
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return NetworkCosts(
        parameters=sum(parameter.numel() for parameter in unet.parameters()),
        forward_flops=forward.get_total_flops(),
        pass_flops=forward.get_total_flops() + backward.get_total_flops(),
        saved_bytes=sum(saved.values()),
    )
