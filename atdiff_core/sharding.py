"""Parameters, gradients, optimizer and average split between ranks (FSDP2), for networks too large for one device.

A split state trains like a whole one. What is judged and what is kept is gathered first, so that
checkpoints and snapshots do not tell how many ranks made them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import AveragedModel

from atdiff_core.networks import NoisePredictor
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import TrainState


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def shard(state: TrainState, config: TrainConfig, device: str) -> None:
    """Split a state that is whole on every rank between all ranks of the process group, in place.

    A teacher stays whole on every rank.

    Args:
        state: On the CPU, so that no device ever has to hold all of it.
        device: Where this rank's part goes, say ``cuda:1``.
    """
    if not all(weight.requires_grad for weight in state.network.parameters()):
        raise ValueError("a network that learns by LoRA is not split between ranks; set resources.sharded=False")
    kind = torch.device(device).type
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    learned = state.optimizer.state_dict()["state"]
    target = [] if state.target is None else [cast(NoisePredictor, state.target.module)]
    for network in (state.network, state.averaged, *target):
        _split(network, mesh)
    state.optimizer = config.optimization.optimizer(state.network)
    _hand_over(learned, state.optimizer)
    scaler = GradScaler(kind, enabled=state.scaler.is_enabled())
    scaler.load_state_dict(state.scaler.state_dict())
    state.scaler = scaler


def whole(state: TrainState, config: TrainConfig) -> TrainState:
    """The state with an average that is whole on every rank; as it is, where it was never split.

    All ranks must call it. The copy holds the weights once, a small part of what training holds.
    """
    if not is_sharded(state.network):
        return state
    network = config.network.build(seed=config.seed)
    network.load_state_dict({name: whole_tensor(value) for name, value in state.averaged.state_dict().items()})
    device = next(state.network.parameters()).device
    return replace(state, average=AveragedModel(network.to(device)))


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor gathered from all ranks, on the CPU; a whole one as it is."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


@contextmanager
def gradients_postponed(network: nn.Module) -> Iterator[None]:
    """Backward passes inside add to this rank's gradients without sharing them yet."""
    assert isinstance(network, FSDPModule)
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def _split(network: NoisePredictor, mesh: DeviceMesh) -> None:
    """Block by block. Weights are let go after every forward: a measurement may come between backward and step."""
    unet = network.unet
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def _hand_over(learned: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """Give each rank its part of what the optimizer of the whole network has learned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        number: {name: _like(value, parameters[number]) for name, value in slots.items()}
        for number, slots in learned.items()
    }
    optimizer.load_state_dict({"state": split, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Split like the parameter, if it has its shape; counters have not."""
    assert isinstance(parameter, DTensor)
    if value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.device)
    split: Tensor = distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return split
