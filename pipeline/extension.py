"""Which changes a sweep that exists can take."""

from collections.abc import Sequence

from search_spaces.comparison import Comparison
from search_spaces.space import EXTENDABLE, OPERATIONAL, Space

Declared = Space | Comparison


def check_changes(what: str, earlier: Declared, declared: Declared, changed: Sequence[str], *, extend: bool) -> None:
    """Refuse every change that would make the trials before something else than they were.

    Args:
        what: The sweep in words.
        changed: Names of the fields that differ.
        extend: Whether it may grow.

    Raises:
        ValueError: A change that is none of how it is run, nor of how far it goes.
    """
    grows = EXTENDABLE if isinstance(declared, Space) else ()
    free = OPERATIONAL if isinstance(declared, Space) else ("shards", "resources")
    strange = [name for name in changed if name not in (*free, *grows)]
    growing = [name for name in changed if name in grows]
    if strange or (growing and not extend):
        way_out = "" if strange else "add --extend if it is to grow, or "
        raise ValueError(
            f"the {what} was started with another configuration "
            f"(different: {', '.join(strange or growing)}); {way_out}give it another name or another --root"
        )
    if isinstance(earlier, Space) and isinstance(declared, Space):
        _check_growth(what, earlier, declared)


def _check_growth(what: str, earlier: Space, declared: Space) -> None:
    missing = sorted(set(earlier.ladder) - set(declared.ladder))
    if missing:
        raise ValueError(f"the {what} has resolution {missing[0]}, an extension takes none away; put it back")
    amounts = {
        "trials": (earlier.trials, declared.trials),
        "replication.leaders": (earlier.replication.leaders, declared.replication.leaders),
        "replication.seeds": (earlier.replication.seeds, declared.replication.seeds),
    }
    for name, (before, now) in amounts.items():
        if now < before:
            raise ValueError(f"the {what} has {name}={before}, an extension takes none away, got {now}")
