"""What a trial asks of the machines it runs on: it decides speed and safety, never the result."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from atdiff_core.config import Config

Workers = PositiveInt | tuple[PositiveInt, PositiveInt]
"""Ranks of a trial: a number, or the least and the most it may have while nodes come and go."""


def worker_range(workers: Workers) -> tuple[int, int]:
    """The least and the most ranks."""
    return (workers, workers) if isinstance(workers, int) else workers


def check_workers(workers: Workers, batch_size: int) -> None:
    """Refuse numbers of ranks that do not share a minibatch evenly."""
    least, most = worker_range(workers)
    if least > most:
        raise ValueError(f"workers must be (least, most) with least <= most, got {workers}")
    uneven = [number for number in range(least, most + 1) if batch_size % number]
    if uneven and isinstance(workers, int):
        raise ValueError(f"batch_size must be divisible by workers={workers}, got {batch_size}")
    if uneven:
        raise ValueError(
            f"batch_size must be divisible by every number of ranks from {least} to {most}, "
            f"but {batch_size} is not divisible by {uneven[0]}; change workers or batch_size"
        )


class Resources(Config):
    """How a trial's ranks are placed, and how it survives the loss of them.

    No part of any trial's key: a sweep may be continued with other resources.

    Attributes:
        cpus: CPUs of each rank.
        gpus: GPUs of each rank; 0 trains on the CPU.
        placement: Of the ranks of one trial. ``PACK``: on as few nodes as possible. ``SPREAD``: on as
            many. ``STRICT_SPREAD``: each on a node of its own.
        sharded: Whether parameters, gradients and optimizer are split between the ranks (FSDP2), for
            networks that one device cannot hold.
        slice_size: Samples that go through the network together on a rank; 0 for all of them.
        compile: Whether torch compiles the network.
        gradient_checkpointing: Whether activations are computed again in the backward, which saves memory.
        checkpoints: Folder or address (``s3://bucket/folder``, or any other that pyarrow opens) for the
            resumable states of trials of several ranks; empty for the sweep's own folder.
        checkpoint_sec: Seconds between them: what a lost node costs at most.
        keep_checkpoints: How many a trial keeps.
        max_failures: Lost ranks and errors that a trial survives; announced preemptions do not count.
        resize_sec: Seconds after which a trial with a range of workers looks for nodes that joined.
        audit: Whether every rank writes down, in the trial's folder, which samples it consumed.
    """

    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    sharded: bool = False
    slice_size: Annotated[int, Field(ge=0)] = 0
    compile: bool = False
    gradient_checkpointing: bool = Field(False, exclude_if=lambda chosen: not chosen)
    checkpoints: str = ""
    checkpoint_sec: Annotated[float, Field(ge=0)] = 20.0
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 4
    resize_sec: Annotated[float, Field(gt=0)] = 60.0
    audit: bool = False

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"resources.gpus must be a fraction of one GPU or a whole number, got {self.gpus:g}")
        return self

    @property
    def per_worker(self) -> dict[str, float]:
        """What Ray reserves for each rank."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
