"""The audit: what each rank consumed, joined again into minibatches of the stream."""

import json
from itertools import islice
from pathlib import Path

import pytest

from atdiff_core.data.stream import ShardSet
from atdiff_core.team import Team
from pipeline.audit import AUDIT, AuditedShards, load_audit


def consume(shards: ShardSet, trial: Path, *, first: int, count: int, ranks: int, short: int = 0) -> None:
    """One attempt of some ranks, the last of which consumed ``short`` minibatches less."""
    audited = [AuditedShards(shards, trial, Team(rank, 1)) for rank in range(ranks)]
    for rank, mine in enumerate(audited):
        mine._ranks = ranks
        batches = mine.batches(seed=1, batch_size=12, first=first, rank=rank, world_size=ranks)
        assert len(list(islice(batches, count - short * (rank == ranks - 1)))) > 0


def test_attempts_on_different_numbers_of_ranks_add_up_to_the_stream(digits_8px: ShardSet, tmp_path: Path) -> None:
    consume(digits_8px, tmp_path, first=0, count=5, ranks=2, short=1)
    consume(digits_8px, tmp_path, first=3, count=4, ranks=3)
    first, second = load_audit(tmp_path)
    assert (sorted(first), sorted(second)) == ([0, 1, 2, 3], [3, 4, 5, 6])
    assert first[3].samples == second[3].samples
    assert (first[3].ranks, second[3].ranks) == (2, 3)
    straight = list(islice(digits_8px.batches(seed=1, batch_size=12), 7))
    for number, batch in enumerate(straight):
        assert (first | second)[number].samples == dict(sorted(zip(batch.positions, batch.keys, strict=True)))


def test_a_line_cut_short_is_no_minibatch(digits_8px: ShardSet, tmp_path: Path) -> None:
    consume(digits_8px, tmp_path, first=0, count=2, ranks=1)
    with (tmp_path / AUDIT / "000-rank0.jsonl").open("a") as file:
        file.write('{"minibatch": 2, "ra')
    (attempt,) = load_audit(tmp_path)
    assert sorted(attempt) == [0, 1]


def test_a_sample_consumed_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / AUDIT).mkdir()
    for rank in range(2):
        line = {"minibatch": 0, "ranks": 2, "samples": {"5": "one"}}
        (tmp_path / AUDIT / f"000-rank{rank}.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="two ranks consumed the same sample of minibatch 0"):
        load_audit(tmp_path)
