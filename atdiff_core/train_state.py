"""What training changes, and how the work is done on the machine at hand."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atdiff_core.lora import adapt, lora_rank
from atdiff_core.networks import NoisePredictor
from atdiff_core.objectives.objective import Companions, Teacher
from atdiff_core.text_networks import NEW_IN_A_STUDENT
from atdiff_core.timesteps import LossHistory
from atdiff_core.train_config import SCRATCH, TrainConfig


@dataclass(frozen=True)
class Execution:
    """How the work is done: it decides speed and memory, and the result to float rounding only.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        slice_size: Samples that go through the network together on a rank; 0 for all of them.
            Smaller slices accumulate their gradients. Dropout masks depend on it.
        compile: Whether torch compiles the network (minutes at the start; off on a CPU).
        channels_last: Memory layout of the convolutions; faster on GPUs, a tenth slower for small U-Nets on a CPU.
        data_workers: Processes of each rank that read and decode ahead. None is best for sets
            that fit into memory (``ShardSet.batches``).
        sharded: Whether several ranks split the state between them (``atdiff_core.sharding``).
        gradient_checkpointing: Whether activations are computed again in the backward instead of
            kept: a third more work, a fraction of the memory.
    """

    device: str = "cpu"
    slice_size: int = 0
    compile: bool = False
    channels_last: bool = False
    data_workers: int = 0
    sharded: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.slice_size < 0:
            raise ValueError(f"slice_size must be >= 0 (0 for the whole minibatch), got {self.slice_size}")
        if self.data_workers < 0:
            raise ValueError(f"data_workers must be >= 0 (0: the rank itself reads), got {self.data_workers}")

    def prepared(self, network: NoisePredictor) -> NoisePredictor:
        """The network, moved and laid out in place."""
        network.to(self.device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # Missing from torch's stubs.
        if self.gradient_checkpointing:
            network.unet.enable_gradient_checkpointing()
        if self.compile:
            network.compile()
        return network


@dataclass
class TrainState:
    """What training changes: resumable at any minibatch because nothing else is remembered.

    Attributes:
        history: Losses by timestep, where the timestep sampler learns from them.
        target: Average that the objective compares the network with, where it keeps one.
        teacher: What the network is taught by, where the objective needs it; never changed, so
            no part of a checkpoint.
        scaler: Scale of half-precision gradients; disabled otherwise.
    """

    network: NoisePredictor
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    history: LossHistory | None = None
    target: AveragedModel | None = None
    teacher: Teacher | None = None
    minibatches: int = 0

    @property
    def averaged(self) -> NoisePredictor:
        """The network with averaged weights, which is what is judged and kept."""
        return cast(NoisePredictor, self.average.module)

    @property
    def companions(self) -> Companions:
        """The networks beside the trained one."""
        return Companions(self.teacher, self.target)

    def average_target(self, decay: float) -> None:
        """Move the target towards the network, once an optimizer step."""
        if self.target is not None:
            self.target.multi_avg_fn = get_ema_multi_avg_fn(decay)
            self.target.update_parameters(self.network)

    @classmethod
    def fresh(
        cls,
        config: TrainConfig,
        start: nn.Module | None = None,
        execution: Execution | None = None,
        teacher: Teacher | None = None,
    ) -> "TrainState":
        """The state before the first step: random weights, or those of the network to fine-tune."""
        if (start is None) != (config.start_from == SCRATCH):
            raise ValueError(f"the config starts from {config.start_from!r}, but start is {start and type(start)}")
        if (teacher is None) == config.objective.needs_teacher:
            raise ValueError(f"objective {config.objective.kind} needs {_teachers(config)}, got {teacher and 'one'}")
        if teacher is not None:
            config.objective.check_teacher(teacher.noise)
            _check_teacher_reads(config, teacher.network)
        return cls.made(config, start, execution or Execution(), teacher)

    @classmethod
    def made(
        cls, config: TrainConfig, start: nn.Module | None, execution: Execution, teacher: Teacher | None
    ) -> "TrainState":
        """The same unchecked: without a start its weights are random, for a checkpoint to replace."""
        network = config.network.build(seed=config.seed)
        if start is not None:
            _adopt(network, start)
        if rank := lora_rank(config.network):
            adapt(network, rank, seed=config.seed)
        average = config.optimization.averaged(network.to(execution.device), kpass_per_step=config.kpass_per_step)
        target = _target(network, execution) if config.objective.keeps_target else None
        network = execution.prepared(network)
        return cls(
            network=network,
            average=average,
            optimizer=config.optimization.optimizer(network),
            scaler=GradScaler(torch.device(execution.device).type, enabled=config.precision == "fp16"),
            history=config.objective.history(),
            target=target,
            teacher=teacher,
        )


def _check_teacher_reads(config: TrainConfig, teacher: nn.Module) -> None:
    """A teacher must take what its student takes."""
    for name in ("image_channels", "prompt_width"):
        theirs, ours = (getattr(each, name, None) for each in (teacher, config.network))
        if isinstance(teacher, NoisePredictor) and theirs != ours:
            raise ValueError(f"teacher and student must have the same {name}, got {theirs} and {ours}")


def _teachers(config: TrainConfig) -> str:
    return "a teacher" if config.objective.needs_teacher else "no teacher"


def _target(network: NoisePredictor, execution: Execution) -> AveragedModel:
    """A copy that starts where the network does and gets no gradient; made before the network is compiled."""
    target = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    target.n_averaged.fill_(1)  # torch's first update would copy the network, whatever the decay.
    target.requires_grad_(False)
    execution.prepared(cast(NoisePredictor, target.module))
    return target


def _adopt(network: nn.Module, start: nn.Module) -> None:
    """Copy the weights of the network to fine-tune, or say what does not fit.

    What only a student of guidance has stays as it is, where the start is no student.
    """
    ours, theirs = network.state_dict(), start.state_dict()
    new = {name for name in ours if name.startswith(NEW_IN_A_STUDENT) and name not in theirs}
    theirs |= {name: ours[name] for name in new}
    for name in [*ours, *theirs]:
        here, there = (tuple(each[name].shape) if name in each else None for each in (ours, theirs))
        if here != there:
            raise ValueError(
                f"the network to start from is of another shape than the config's: {name} is {there} there, "
                f"{here} here (None: absent); choose the preset that the snapshot was made with"
            )
    network.load_state_dict(theirs)
