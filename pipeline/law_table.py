"""Laws of a table of optima that anybody may have made: one law a series."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm as normal

from atdiff_core.laws import LawRefused, PowerLaw, Rung, fit_power_law
from atdiff_core.response import Optimum

EXACT = 1e-9  # Standard deviation of a logarithm that is given without any.
DRAWS = 2000
COLUMNS = (
    "columns: scale, optimum (both > 0), and optionally low and high (95 % interval) or log_std (of log optimum), "
    "series (one law each, say the norm), name (of the rung)"
)


@dataclass(frozen=True)
class TableLaw:
    """What one series of a table says.

    Attributes:
        series: Its name; empty where the table has no such column.
        law: The law, or why the optima do not carry one.
        exact: Whether the table gave no uncertainty: then the scatter carries all of it.
    """

    series: str
    law: PowerLaw | LawRefused
    exact: bool


def table_laws(path: Path, *, seed: int = 0) -> list[TableLaw]:
    """Fit every series of a CSV file.

    Its first line names the columns: ``scale`` and ``optimum``, and optionally ``low`` and ``high``
    (95 % interval of the optimum) or ``log_std`` (standard deviation of its logarithm), ``series``
    and ``name``. Others are ignored. An uncertain optimum is taken as log-normal.

    Raises:
        ValueError: A column is missing or a cell is not a number > 0, named with its line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = {name.strip() for name in reader.fieldnames or []}
        missing = {"scale", "optimum"} - names
        if missing:
            raise ValueError(f"{path} lacks the column {' and '.join(sorted(missing))}; {COLUMNS}")
        rows = [_Row.of(path, reader.line_num, row) for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows below its heading; {COLUMNS}")
    laws = []
    for series in dict.fromkeys(row.series for row in rows):
        chosen = [row for row in rows if row.series == series]
        laws.append(TableLaw(series, _law(chosen, seed), all(row.log_std <= EXACT for row in chosen)))
    return laws


def _law(rows: Iterable["_Row"], seed: int) -> PowerLaw | LawRefused:
    try:
        return fit_power_law([row.rung() for row in rows], seed=seed)
    except LawRefused as refusal:
        return refusal


@dataclass(frozen=True)
class _Row:
    series: str
    name: str
    scale: float
    optimum: float
    log_std: float

    @classmethod
    def of(cls, path: Path, line: int, cells: dict[str, str | None]) -> "_Row":
        row = {
            (name or "").strip(): (text or "").strip() for name, text in cells.items() if isinstance(text, str | None)
        }
        scale, optimum = (_positive(path, line, row, name) for name in ("scale", "optimum"))
        log_std = EXACT
        if row.get("log_std"):
            log_std = _positive(path, line, row, "log_std")
        elif row.get("low") or row.get("high"):
            low, high = (_positive(path, line, row, name) for name in ("low", "high"))
            if not low <= optimum <= high:
                raise ValueError(f"{path}, line {line}: needs low <= optimum <= high, got {low}, {optimum} and {high}")
            log_std = max(EXACT, math.log(high / low) / (2 * float(normal.ppf(0.975))))
        return cls(row.get("series", ""), row.get("name") or f"{scale:g}", scale, optimum, log_std)

    def rung(self) -> Rung:
        """The rung, its optimum's posterior drawn at the quantiles of a log-normal."""
        places = (np.arange(DRAWS) + 0.5) / DRAWS
        samples = math.log(self.optimum) + self.log_std * normal.ppf(places)
        low, high = np.exp(np.quantile(samples, [0.025, 0.975]))
        optimum = Optimum(
            verdict="optimum",
            reason="given in a table",
            eta=self.optimum,
            low=float(low),
            high=float(high),
            log_std=self.log_std,
            samples=samples,
            effect=math.nan,
            effect_low=math.nan,
            effect_high=math.nan,
        )
        return Rung(self.name, self.scale, optimum)


def _positive(path: Path, line: int, row: dict[str, str], name: str) -> float:
    text = row.get(name, "")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{path}, line {line}: {name} must be a number > 0, got {text!r}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{path}, line {line}: {name} must be a number > 0, got {text}")
    return value
