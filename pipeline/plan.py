"""What a sweep will cost, before anything starts: trials, passes, operations, hours, money, days."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from atdiff_core.costs import network_costs
from atdiff_core.samplers import Sampler
from pipeline.calibration import Rates
from pipeline.records import Role
from pipeline.repetition import planned_repetitions
from search_spaces.operation import Price
from search_spaces.resources import worker_range
from search_spaces.space import Space

SEC_BETWEEN_TRIALS = 0.9
"""Of a reused Ray Tune actor: `python -m benchmarks.orchestration`, benchmarks/results/orchestration.md."""

Kind = Literal["base", "controls", "search", "repetitions"]
KIND_OF: dict[Role, Kind] = {
    "base": "base",
    "plain": "controls",
    "replay": "controls",
    "search": "search",
    "repeat": "repetitions",
    "random": "repetitions",
}


@dataclass(frozen=True)
class PlannedTrials:
    """Trials of one kind at one resolution.

    Attributes:
        stage: Trials of one stage run side by side; the next stage waits for all of them.
        trials: How many.
        kpass: Thousand passes that one of them is expected to train; some are stopped at the rung.
        at_most_kpass: If none is stopped.
        samples: Images made by each sampler in a judgement.
        samplers: Those that judge at the end; the first alone judges at the rung.
        finishing: Share of the trials that is expected to reach the end.
        rate: Speed of the machine at this resolution; ``None`` without calibration.
    """

    stage: str
    resolution: int
    kind: Kind
    trials: int
    kpass: float
    at_most_kpass: float
    samples: int
    samplers: tuple[Sampler, ...]
    finishing: float
    judged_at_rung: bool
    workers: int
    rate: Rates | None

    @property
    def knfe(self) -> float:
        """Thousand network evaluations of one trial's judgements."""
        first = self.samplers[0].nfe if self.judged_at_rung else 0
        every = self.finishing * sum(sampler.nfe for sampler in self.samplers)
        return self.samples * (first + every) / 1000

    @property
    def sec(self) -> float | None:
        """Wall-clock seconds of one trial."""
        if self.rate is None:
            return None
        judging = self.finishing * self.rate.judging_sec(self.samples, self.samplers)
        if self.judged_at_rung:
            judging += self.rate.judging_sec(self.samples, self.samplers[:1])
        training = self.kpass * self.rate.sec_per_kpass / self.workers
        return training + judging + self.rate.sec_per_trial + SEC_BETWEEN_TRIALS


@dataclass(frozen=True)
class Plan:
    """A sweep's cost.

    Attributes:
        slots: Trials at once.
        device: What one slot holds ``workers`` of: ``CPU core`` or ``GPU``.
    """

    space: Space
    rows: tuple[PlannedTrials, ...]
    slots: int
    device: str

    @property
    def price(self) -> Price:
        return self.space.price

    @property
    def trials(self) -> int:
        return sum(row.trials for row in self.rows)

    @property
    def kpass(self) -> float:
        return sum(row.trials * row.kpass for row in self.rows)

    @property
    def at_most_kpass(self) -> float:
        return sum(row.trials * row.at_most_kpass for row in self.rows)

    @cached_property
    def flops(self) -> float:
        """Operations of training and sampling."""
        return sum(row_flops(self.space, row) for row in self.rows)

    @property
    def device_hours(self) -> float | None:
        """Hours that devices are held by trials."""
        seconds = [row.sec for row in self.rows]
        if None in seconds:
            return None
        known = zip(self.rows, seconds, strict=True)
        return sum(row.trials * row.workers * (sec or 0.0) for row, sec in known) / 3600

    @property
    def money(self) -> float | None:
        return None if self.device_hours is None else self.device_hours * self.price.per_device_hour

    @property
    def wall_clock_sec(self) -> float | None:
        """From start to end, stage after stage, on the slots there are."""
        if any(row.sec is None for row in self.rows):
            return None
        total = 0.0
        for stage in dict.fromkeys(row.stage for row in self.rows):
            here = [row for row in self.rows if row.stage == stage]
            total += makespan([row.sec or 0.0 for row in here for _ in range(row.trials)], self.slots)
        return total

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs; unknown numbers are ``None``."""
        rows = [
            {
                "stage": row.stage,
                "resolution": row.resolution,
                "kind": row.kind,
                "trials": row.trials,
                "kpass_each": row.kpass,
                "at_most_kpass_each": row.at_most_kpass,
                "knfe_each": row.knfe,
                "flops": row_flops(self.space, row),
                "sec_each": row.sec,
            }
            for row in self.rows
        ]
        rates = {str(row.resolution): asdict(row.rate) for row in self.rows if row.rate is not None}
        memory = {str(r): step_bytes(self.space, r) for r in self.space.ladder}
        return {
            "space": self.space.name,
            "identity": self.space.identity,
            "slots": self.slots,
            "device": self.device,
            "rows": rows,
            "rates": rates,
            "step_bytes": memory,
            "total": {
                "trials": self.trials,
                "kpass": self.kpass,
                "at_most_kpass": self.at_most_kpass,
                "flops": self.flops,
                "device_hours": self.device_hours,
                "money": self.money,
                "currency": self.price.currency,
                "wall_clock_sec": self.wall_clock_sec,
            },
        }


def planned(space: Space, *, slots: int, device: str, rates: Mapping[int, Rates] | None = None) -> Plan:
    """The plan of a whole sweep.

    Args:
        rates: Speed by resolution; without them there are no seconds.
    """
    if slots < 1:
        raise ValueError(f"a sweep needs at least one slot for its trials of {space.workers} workers, got {slots}")
    return Plan(space, tuple(_rows(space, rates or {})), slots, device)


def _rows(space: Space, rates: Mapping[int, Rates]) -> Iterator[PlannedTrials]:
    tuned, seeds = space.finetuning.budget_kpass, space.replication.seeds
    controls = 1 + len(space.domains.replay_counts())
    leaders = min(space.replication.leaders, space.trials)
    stops = space.stopping.rung < 1
    kept = space.stopping.keep if stops else 1.0

    def row(stage: str, resolution: int, kind: Kind, trials: int, kpass: float, kept: float = 1.0) -> PlannedTrials:
        return PlannedTrials(
            stage=stage,
            resolution=resolution,
            kind=kind,
            trials=trials,
            kpass=kpass * (kept + (1 - kept) * space.stopping.rung),
            at_most_kpass=kpass,
            samples=space.evaluation.samples,
            samplers=space.evaluation.samplers,
            finishing=kept,
            judged_at_rung=stops and kind != "base",
            workers=worker_range(space.workers)[1],
            rate=rates.get(resolution),
        )

    for resolution in space.ladder:
        yield row("base models", resolution, "base", 1, space.pretraining.budget_kpass)
    for resolution in space.ladder:
        search, last = f"{resolution} px: search", f"{resolution} px: repetitions"
        yield row(search, resolution, "controls", controls * seeds, tuned)
        yield row(search, resolution, "search", space.trials, tuned, kept)
        yield row(last, resolution, "repetitions", planned_repetitions(space.replication, leaders), tuned)


def row_flops(space: Space, row: PlannedTrials) -> float:
    """Operations of training and sampling of all the row's trials."""
    return row.trials * flops_of(space, row.resolution, row.kpass, row.knfe)


def flops_of(space: Space, resolution: int, kpass: float, knfe: float) -> float:
    """Operations of so many thousand passes and network evaluations."""
    costs = network_costs(space.network.at(resolution))
    return 1000 * (kpass * costs.pass_flops + knfe * costs.forward_flops)


def step_bytes(space: Space, resolution: int) -> int:
    """Memory of one training step of a rank."""
    return network_costs(space.network.at(resolution)).step_bytes(space.batch_size // worker_range(space.workers)[0])


def check_memory(space: Space) -> None:
    """Refuse resolutions whose training step exceeds ``constraints.max_memory_gb``."""
    limit = space.constraints.max_memory_gb
    for resolution in space.ladder if limit else ():
        needed = step_bytes(space, resolution) / 1e9
        if needed > limit:
            raise ValueError(
                f"a training step at {resolution} px needs about {needed:.3g} GB, constraints.max_memory_gb is "
                f"{limit:g}; lower batch_size (now {space.batch_size}), or take {resolution} off the ladder"
            )


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of independent trials ends, each going to the slot that is free first."""
    ends = [0.0] * slots
    for sec in seconds:
        heapq.heapreplace(ends, ends[0] + sec)
    return max(ends)
