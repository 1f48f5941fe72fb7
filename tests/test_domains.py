"""Domains and spaces: what a point becomes, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sweep_helpers import tiny_space

from search_spaces.domains import Range, RawDomains, ReachDomains, choice, log_range
from search_spaces.space import load_space


@given(
    eta=st.floats(1e-4, 1.0),
    reach=st.floats(0.1, 3.0),
    replays=st.integers(2, 9),
    norm=st.sampled_from(["l1", "l2", "linf"]),
)
def test_the_step_is_derived_from_radius_reach_and_replays(eta: float, reach: float, replays: int, norm: str) -> None:
    domains = ReachDomains(
        eta=log_range(1e-4, 1.0),
        num_replays=choice(*range(2, 10)),
        reach=Range(low=0.1, high=3.0),
        norm=choice("l1", "l2", "linf"),
    )
    scheme = domains.perturbation({"eta": eta, "reach": reach, "num_replays": replays, "norm": norm}, dimension=64)
    assert scheme.ball.radius == eta
    assert scheme.ball.norm == norm
    assert scheme.reach == pytest.approx(reach)


def test_raw_domains_of_the_paper_become_amplitudes() -> None:
    domains = RawDomains(alpha=choice(0.1), eta=log_range(0.1, 10.0))
    scheme = domains.perturbation({"eta": 0.2}, dimension=3072)
    assert scheme.step_size == pytest.approx(0.1 / 3072**0.5)
    assert scheme.ball.raw(scheme.ball.radius, 3072) == pytest.approx(0.2)


def test_fixed_names_are_not_searched() -> None:
    domains = ReachDomains(eta=log_range(0.01, 0.1), num_replays=choice(3), norm=choice("l2"))
    assert set(domains.searched()) == {"eta"}
    assert domains.fixed() == {"num_replays": 3, "reach": 1.0, "norm": "l2"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReachDomains(eta=choice(0.1)), "at least one domain that varies"),
        (lambda: ReachDomains(eta=log_range(0.1, 0.01)), "low < high, got 0.1 and 0.01"),
        (lambda: ReachDomains(eta=log_range(0.0, 0.01)), "low > 0, got 0"),
        (
            lambda: ReachDomains(eta=log_range(0.1, 1.0), norm=choice("l3")),
            "norm must be one of l1, l2, linf, got 'l3'",
        ),
        (lambda: ReachDomains(eta=log_range(0.1, 1.0), num_replays=choice(1, 3)), "num_replays must be >= 2"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name"),
        ({"ladder": (16, 8)}, "ladder must ascend"),
        ({"ladder": (8, 9)}, "divisible by 2"),
        ({"workers": 3}, "divisible by workers=3, got 16"),
        ({"finetuning": {"budget_kpass": 0.01, "optimization": {}}}, "must pay for a minibatch"),
        ({"trials": 0}, "trials"),
    ],
)
def test_a_declaration_that_cannot_be_run_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_space(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space = 3", "must define `space = Space"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("import no_such_module", "no_such_module"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_file_without_a_space_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "space.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_space(file)


def test_every_space_that_is_shipped_loads() -> None:
    folder = Path(__file__).parent.parent / "search_spaces"
    for file in sorted(folder.glob("demo*.py")):
        assert load_space(file).name
