"""A record of the samples that each rank consumed, to prove that no recovery lost or repeated one."""

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atdiff_core.data.batch import Batch
from atdiff_core.data.stream import ShardSet
from atdiff_core.team import Team

AUDIT = "audit"
"""Folder inside a trial's folder; one file for each rank of each attempt."""


class AuditedShards(ShardSet):
    """The same shards; every minibatch is written down as it is handed out."""

    def __init__(self, shards: ShardSet, trial: Path, team: Team) -> None:
        """Begin an attempt's record in the trial's folder; all ranks must do so."""
        self.__dict__.update(shards.__dict__)
        folder = trial / AUDIT
        folder.mkdir(parents=True, exist_ok=True)
        (attempt,) = team.agreed(len(list(folder.glob("*-rank0.jsonl"))))
        self._file = folder / f"{attempt:03d}-rank{team.rank}.jsonl"
        self._ranks = team.size

    def batches(self, **asked: Any) -> Generator[Batch]:
        """As ``ShardSet.batches``."""
        with closing(super().batches(**asked)) as batches, self._file.open("a") as file:
            for number, batch in enumerate(batches, start=asked.get("first", 0)):
                samples = dict(zip(batch.positions, batch.keys, strict=True))
                file.write(json.dumps({"minibatch": number, "ranks": self._ranks, "samples": samples}) + "\n")
                file.flush()
                yield batch


@dataclass(frozen=True)
class Consumed:
    """One minibatch of one attempt.

    Attributes:
        ranks: How many shared it.
        samples: Key of the sample at each position of the stream, in order.
    """

    ranks: int
    samples: dict[int, str]


def load_audit(trial: Path) -> list[dict[int, Consumed]]:
    """Minibatches by number for each attempt, those that every rank consumed; a line cut short by a kill is none."""
    attempts = []
    for leader in sorted((trial / AUDIT).glob("*-rank0.jsonl")):
        number = leader.name.removesuffix("-rank0.jsonl")
        by_rank = [_lines(file) for file in sorted(leader.parent.glob(f"{number}-rank*.jsonl"))]
        attempts.append(_joined(by_rank))
    return attempts


def _lines(file: Path) -> dict[int, Consumed]:
    found = {}
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        samples = {int(position): key for position, key in line["samples"].items()}
        found[line["minibatch"]] = Consumed(line["ranks"], samples)
    return found


def _joined(by_rank: list[dict[int, Consumed]]) -> dict[int, Consumed]:
    """Minibatches of one attempt, whole ones only.

    Raises:
        ValueError: Two ranks consumed the same place of the stream.
    """
    whole = {}
    for number, first in by_rank[0].items():
        parts = [rank[number].samples for rank in by_rank if number in rank]
        if len(parts) < first.ranks:
            continue
        joined = {position: key for part in parts for position, key in part.items()}
        if len(joined) < sum(map(len, parts)):
            raise ValueError(f"two ranks consumed the same sample of minibatch {number}")
        whole[number] = Consumed(first.ranks, dict(sorted(joined.items())))
    return whole
