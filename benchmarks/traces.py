"""What a search stated about the optimum, and from when on it was right."""

import math
from dataclasses import dataclass, field


@dataclass
class Trace:
    """What a search stated after so many passes, in trials of full budget."""

    spent: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def state(self, spent: float, error: float) -> None:
        self.spent.append(spent)
        self.errors.append(error)

    def known(self, within: float = math.log(1.1)) -> float:
        """Passes after which the stated eta* stays within 10 %; infinite if it does not."""
        at = math.inf
        for spent, error in zip(reversed(self.spent), reversed(self.errors), strict=True):
            if abs(error) > within:
                break
            at = spent
        return at

    def first(self, within: float = math.log(1.1)) -> float:
        """Passes after which it is within 10 % for the first time, perhaps by luck."""
        return next((s for s, e in zip(self.spent, self.errors, strict=True) if abs(e) <= within), math.inf)
