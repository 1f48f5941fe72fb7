"""Weights of guided-diffusion and improved-diffusion, into a U-Net of diffusers and back.

Both code bases name the parts of a U-Net by their place in three lists, and keep query, key and
value of an attention in one matrix. A state dict says nothing of the width of a head, the order of
that matrix's rows or the groups of a normalisation: those come from the config.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from atdiff_core.networks import NoisePredictor, UNet

AttentionOrder = Literal["new", "legacy"]
"""Rows of the matrix of queries, keys and values: ``new`` has all queries, then all keys, then all
values; ``legacy`` has the query, key and value of the first head, then of the second, and so on.
ADM's published models at 64 px are ``new``; improved-diffusion knows only ``legacy``."""

_ALWAYS = {
    "time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0, "center_input_sample": False,
    "act_fn": "silu", "norm_eps": 1e-5, "downsample_padding": 1, "mid_block_scale_factor": 1,
}  # fmt: skip
_RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_BLOCKS = {
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D",
}  # fmt: skip
_ADVICE = "check the preset, the number of classes, the image channels and the learned variance"


@dataclass(frozen=True)
class _Entry:
    """One tensor of an ADM file: its name, and the one or three (query, key, value) it is made of here."""

    name: str
    ours: tuple[str, ...]


def read_adm(file: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pt`` file, raw or EMA; only tensors are unpickled, nothing is run.

    Raises:
        ValueError: The file is missing, damaged, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file leads the unpickler to raise whatever comes.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(
            f"{file} is truncated, or not a file of weights that torch can open safely: {reason}"
        ) from None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{file} must hold a state dict (names and tensors), got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{file} must hold a state dict, but {name!r} is a {type(value).__name__}, not a tensor; "
                "give the model's or the EMA's file, not the optimizer's"
            )
    return dict(content)


def write_adm(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A state dict as a ``.pt`` file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        torch.save(dict(tensors), scratch)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def load_adm(state_dict: Mapping[str, Tensor], unet: UNet, attention_order: AttentionOrder) -> NoisePredictor:
    """The network with the weights of an ADM state dict, float32, on the CPU.

    Raises:
        ValueError: A tensor is missing, unexpected or of another shape; the first is named.
    """
    _check_order(attention_order)
    with torch.device("meta"):
        empty = unet.build_unet()
    entries = list(_entries(empty))
    wanted = {entry.name: tensor.shape for entry, tensor in _tensors(empty, attention_order)}
    _check_fit({name: tensor.shape for name, tensor in state_dict.items()}, wanted)
    weights: dict[str, Tensor] = {}
    for entry in entries:
        weights |= _ours(state_dict[entry.name].float(), entry, empty, attention_order)
    empty.load_state_dict(weights, assign=True)
    return NoisePredictor(empty)


def to_adm(network: NoisePredictor, attention_order: AttentionOrder) -> dict[str, Tensor]:
    """The weights under ADM's names, on the CPU: what ``load_adm`` reads, bit for bit.

    Raises:
        ValueError: The network has no counterpart in ADM.
    """
    _check_order(attention_order)
    tensors = _tensors(network.unet, attention_order)
    return {entry.name: tensor.detach().cpu().clone() for entry, tensor in tensors}


def _tensors(unet: UNet2DModel, attention_order: AttentionOrder) -> Iterator[tuple[_Entry, Tensor]]:
    """Every tensor of the ADM file that the network would make, in the order of the file."""
    state = unet.state_dict()
    for entry in _entries(unet):
        parts = [state[name] for name in entry.ours]
        if len(parts) == 1:
            yield entry, parts[0][..., None] if _is_convolution(entry) else parts[0]
            continue
        rows = torch.stack([part.unflatten(0, (-1, unet.config.attention_head_dim)) for part in parts])
        joint = (rows if attention_order == "new" else rows.transpose(0, 1)).flatten(0, 2)
        yield entry, joint[..., None] if _is_convolution(entry) else joint


def _ours(tensor: Tensor, entry: _Entry, unet: UNet2DModel, attention_order: AttentionOrder) -> dict[str, Tensor]:
    """The inverse of ``_tensors``, for one entry."""
    tensor = tensor[..., 0] if _is_convolution(entry) else tensor
    if len(entry.ours) == 1:
        return {entry.ours[0]: tensor.clone()}
    width = unet.config.attention_head_dim
    split = (3, -1, width) if attention_order == "new" else (-1, 3, width)
    rows = tensor.unflatten(0, split)
    parts = rows if attention_order == "new" else rows.transpose(0, 1)
    return {name: part.flatten(0, 1).clone() for name, part in zip(entry.ours, parts, strict=True)}


def _is_convolution(entry: _Entry) -> bool:
    """Whether ADM has a convolution over positions where diffusers has a linear layer."""
    return entry.name.endswith(("qkv.weight", "proj_out.weight"))


def _entries(unet: UNet2DModel) -> Iterator[_Entry]:
    _check_counterpart(unet)
    held = unet.state_dict()
    for theirs, *ours in _layers(unet):
        for kind in ("weight", "bias"):
            names = tuple(f"{name}.{kind}" for name in ours)
            if names[0] in held:
                yield _Entry(f"{theirs}.{kind}", names)


def _layers(unet: UNet2DModel) -> Iterator[tuple[str, ...]]:
    """ADM's name of every layer and ours, three of ours for an attention's joint matrix."""
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "label_emb", "class_embedding"
    yield "input_blocks.0.0", "conv_in"
    place = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            yield from _block(f"input_blocks.{place}", f"down_blocks.{level}", layer, block)
            place += 1
        if block.downsamplers is not None:
            yield from _resampling(f"input_blocks.{place}.0", f"down_blocks.{level}.downsamplers.0", "op", block)
            place += 1
    yield from _residual("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _residual("middle_block.2", "mid_block.resnets.1")
    place = 0
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            yield from _block(f"output_blocks.{place}", f"up_blocks.{level}", layer, block)
            place += 1
        if block.upsamplers is not None:
            last = f"output_blocks.{place - 1}.{2 if hasattr(block, 'attentions') else 1}"
            yield from _resampling(last, f"up_blocks.{level}.upsamplers.0", "conv", block)
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _block(theirs: str, ours: str, layer: int, block: nn.Module) -> Iterator[tuple[str, ...]]:
    yield from _residual(f"{theirs}.0", f"{ours}.resnets.{layer}")
    if hasattr(block, "attentions"):
        yield from _attention(f"{theirs}.1", f"{ours}.attentions.{layer}")


def _residual(theirs: str, ours: str) -> Iterator[tuple[str, ...]]:
    return ((f"{theirs}.{name}", f"{ours}.{own}") for name, own in _RESIDUAL.items())


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, ...]]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    yield f"{theirs}.qkv", f"{ours}.to_q", f"{ours}.to_k", f"{ours}.to_v"
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def _resampling(theirs: str, ours: str, convolution: str, block: nn.Module) -> Iterator[tuple[str, ...]]:
    """A residual block that resamples, or the one convolution that does."""
    resamplers = cast(Any, block.downsamplers if convolution == "op" else block.upsamplers)
    if hasattr(resamplers[0], "conv1"):
        yield from _residual(theirs, ours)
    else:
        yield f"{theirs}.{convolution}", f"{ours}.conv"


def _check_order(attention_order: AttentionOrder) -> None:
    if attention_order not in get_args(AttentionOrder):
        raise ValueError(f"attention_order must be new or legacy, got {attention_order!r}")


def _check_counterpart(unet: UNet2DModel) -> None:
    if unet.mid_block.attentions[0] is None:
        raise ValueError("ADM has attention in the middle block: the network must have middle_attention, it has none")
    strange = {*unet.config.down_block_types, *unet.config.up_block_types} - _BLOCKS
    if strange:
        raise ValueError(f"ADM has no {min(strange)}")
    if unet.config.attention_head_dim is None:
        raise ValueError("ADM's attention needs a width of its heads: attention_head_dim is null")
    for name, value in _ALWAYS.items():
        if unet.config[name] != value:
            raise ValueError(f"ADM has no network with {name} = {unet.config[name]}, only with {value}")


def _check_fit(found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size]) -> None:
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(f"the file does not fit: {name} {list(shape)} is missing; {_ADVICE}")
        if found[name] != shape:
            raise ValueError(f"the file does not fit: {name} is {list(found[name])}, not {list(shape)}; {_ADVICE}")
    for name, shape in found.items():
        if name not in wanted:
            raise ValueError(f"the file does not fit: {name} {list(shape)} is unexpected; {_ADVICE}")
