"""Resumable training state as safetensors and JSON with hashes; never pickle."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atdiff_core.files import read_json, sha256_of, write_json
from atdiff_core.objectives.objective import Teacher
from atdiff_core.sharding import whole_tensor
from atdiff_core.timesteps import LossHistory
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import Execution, TrainState

FORMAT = 3
SCALER = ("scale", "_growth_tracker")
"""What a gradient scaler learns as it goes; the rest of its state is settings."""
INDEX = "checkpoint.json"


def save_checkpoint(state: TrainState, config: TrainConfig, folder: Path | None) -> None:
    """Write the state; a crash at any moment leaves the previous checkpoint readable.

    A state split between ranks is gathered and written whole: all ranks call this, one of them with a folder.
    """
    gathered = _tensors_of(state, kept=folder is not None)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / f"state-{state.minibatches:09d}.safetensors"
    save_file(gathered, tensors)
    index = {
        "format": FORMAT,
        "key": config.key,
        "config": config.model_dump(mode="json"),
        "minibatches": state.minibatches,
        "file": tensors.name,
        "sha256": sha256_of(tensors),
    }
    write_json(folder / INDEX, index)
    for older in folder.glob("state-*.safetensors"):
        if older != tensors:
            older.unlink()


def has_checkpoint(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def load_checkpoint(
    config: TrainConfig, folder: Path, execution: Execution | None = None, teacher: Teacher | None = None
) -> TrainState:
    """The state from which training goes on exactly as if it had not stopped.

    Args:
        teacher: The one that training began with; a checkpoint does not hold it.

    Raises:
        ValueError: The checkpoint is missing, damaged, or of another config.
    """
    index = read_json(folder / INDEX)
    if not isinstance(index, dict):
        raise ValueError(f"{folder / INDEX} is damaged: it must hold a JSON object; delete {folder} to start again")
    if index.get("format") != FORMAT or index.get("key") != config.key:
        raise ValueError(
            f"the checkpoint in {folder} belongs to trial {str(index.get('key'))[:12]}, "
            f"this run is trial {config.key[:12]}; choose another output folder"
        )
    file = folder / index["file"]
    if not file.is_file() or sha256_of(file) != index["sha256"]:
        raise ValueError(f"{file} is missing or damaged (its sha256 differs); delete {folder} to start this run again")
    execution = execution or Execution()
    state = TrainState.made(config, None, execution, teacher)
    _restore(state, load_file(file, device=execution.device))
    state.minibatches = index["minibatches"]
    return state


def _tensors_of(state: TrainState, *, kept: bool = True) -> dict[str, Tensor]:
    """Everything that training changes; unless ``kept``, only gathered for another rank's sake."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    if state.target is not None:
        tensors |= {f"target.{name}": value for name, value in state.target.state_dict().items()}
    if state.history is not None:
        tensors |= {"history.losses": state.history.losses, "history.counts": state.history.counts}
    if state.scaler.is_enabled():
        scaled = state.scaler.state_dict()
        tensors |= {f"scaler.{name}": torch.tensor(scaled[name], dtype=torch.float64) for name in SCALER}
    whole = ((name, whole_tensor(value.detach())) for name, value in tensors.items())
    return {name: value.contiguous().clone() for name, value in whole if kept}


def _restore(state: TrainState, tensors: dict[str, Tensor]) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.network.load_state_dict(part("network."))
    state.average.load_state_dict(part("average."))
    if state.target is not None:
        state.target.load_state_dict(part("target."))
    slots: dict[int, dict[str, Any]] = {}
    for name, value in part("optimizer.").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    if state.history is not None:
        remembered = part("history.")
        state.history = LossHistory(remembered["losses"].cpu(), remembered["counts"].cpu())
    if state.scaler.is_enabled():
        scale, tracker = (part("scaler.")[name].item() for name in SCALER)
        state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
