"""Search spaces with a branch for each norm: equal amplitudes in two norms are not equal perturbations."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atdiff_core.balls import Norm, norm_named
from atdiff_core.perturbations import FreeAT
from search_spaces.domains import (
    Choice,
    Domain,
    Point,
    RawDomains,
    ReachDomains,
    SearchedDomains,
    Suggest,
)

Branch = Annotated[ReachDomains | RawDomains, Field(discriminator="kind")]


class NormBranches(SearchedDomains):
    """One set of domains for each norm; what a branch searches exists only where its norm was chosen.

    The searched names of a branch carry its norm: ``eta_l2`` is the radius of the branch ``l2``.

    Attributes:
        branches: At least two, each with a single norm of its own.
    """

    kind: Literal["branches"] = "branches"
    branches: Annotated[tuple[Branch, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _one_norm_each(self) -> Self:
        for branch in self.branches:
            if len(branch.norm.values) != 1:
                raise ValueError(f"each branch has one norm, got {', '.join(map(str, branch.norm.values))} in one")
        names = [str(branch.norm.values[0]) for branch in self.branches]
        if len(set(names)) < len(names):
            raise ValueError(f"branches must have different norms, got {', '.join(names)}")
        if len({branch.kind for branch in self.branches}) > 1:
            raise ValueError("branches must all be ReachDomains or all RawDomains: a figure has one unit, got both")
        return self

    @property
    def conditional(self) -> bool:
        return True

    @property
    def unit(self) -> Literal["reach", "raw"]:
        return self.branches[0].kind

    @property
    def norm(self) -> Choice:
        return Choice(values=tuple(branch.norm.values[0] for branch in self.branches))

    def branch(self, norm: Norm) -> ReachDomains | RawDomains:
        """The domains of one norm."""
        return next(branch for branch in self.branches if norm_named(branch.norm.values[0]) == norm)

    def searched(self) -> dict[str, Domain]:
        named: dict[str, Domain] = {"norm": self.norm}
        for branch in self.branches:
            named |= {f"{name}_{branch.norm.values[0]}": domain for name, domain in branch.searched().items()}
        return named

    def fixed(self) -> Point:
        return {}

    def drawn(self, suggest: Suggest) -> Point:
        norm = norm_named(suggest("norm", self.norm))
        names = self.branch(norm).searched()
        return {"norm": norm} | {f"{name}_{norm}": suggest(f"{name}_{norm}", domain) for name, domain in names.items()}

    def replay_counts(self) -> tuple[int, ...]:
        return tuple(sorted({count for branch in self.branches for count in branch.replay_counts()}))

    def eta_range(self) -> tuple[float, float]:
        ends = [branch.eta_range() for branch in self.branches]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def perturbation(self, point: Point, dimension: int) -> FreeAT:
        norm = norm_named(point["norm"])
        own = {name.removesuffix(f"_{norm}"): value for name, value in point.items() if name.endswith(f"_{norm}")}
        return self.branch(norm).perturbation(own, dimension)


Domains = Annotated[ReachDomains | RawDomains | NormBranches, Field(discriminator="kind")]
