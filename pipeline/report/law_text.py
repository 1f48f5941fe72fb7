"""Any law in plain sentences and as JSON: the exponent, its tests, what it predicts, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atdiff_core.files import write_json
from atdiff_core.laws import LawRefused, PowerLaw
from pipeline.effects import LEVEL, holm
from pipeline.report.wording import between, exponent_of, number, p_text

Laws = Mapping[str, PowerLaw | LawRefused]


def print_laws(laws: Laws, predict_at: Sequence[float], console: Console) -> None:
    """Print every law by the name of its series, then one table of optima and predictions each."""
    nulls = constant_p_values(laws)
    for name, law in laws.items():
        title = f"{name}: " if name else ""
        if isinstance(law, LawRefused):
            console.print(escape(f"{title}no law. {law}"), highlight=False)
            continue
        console.print(
            escape(f"{title}optimum ∝ scale^b, b = {exponent_of(law)}. {_null(nulls[name])}"), highlight=False
        )
        console.print(_table(law, predict_at))
        console.print(escape(_quality(law)), highlight=False)


def constant_p_values(laws: Laws) -> dict[str, float]:
    """p-value of a constant optimum (exponent 0) by series, adjusted for the number of series (Holm)."""
    fitted = {name: law for name, law in laws.items() if isinstance(law, PowerLaw)}
    return dict(zip(fitted, holm([law.p_value(0.0) for law in fitted.values()]), strict=True))


def write_laws(laws: Laws, predict_at: Sequence[float], path: Path) -> None:
    """Write everything that ``print_laws`` says as JSON."""
    nulls = constant_p_values(laws)
    write_json(path, {name: _as_json(law, predict_at, nulls.get(name)) for name, law in laws.items()})


def _null(p_value: float) -> str:
    verdict = "rejected" if p_value < LEVEL else "not rejected"
    return f"A constant optimum (exponent 0) is {verdict}, {p_text(p_value)}."


def _table(law: PowerLaw, predict_at: Sequence[float]) -> Table:
    table = Table()
    for heading in ("", "scale", "optimum (95 %)", "predicted from the others (95 %)", "inside"):
        table.add_column(heading)
    for rung, left in zip(law.rungs, law.leave_one_out, strict=True):
        best = rung.optimum
        measured = f"{number(best.eta)} ({number(best.low)} to {number(best.high)})"
        others = f"{number(left.predicted)} ({number(left.low)} to {number(left.high)})"
        table.add_row(escape(rung.name), number(rung.scale), measured, others, "yes" if left.inside else "no")
    for scale in predict_at:
        at = law.predict(scale)
        table.add_row("predicted", number(scale), f"{number(at.value)} ({between(at.low, at.high)})", "", "")
    return table


def _quality(law: PowerLaw) -> str:
    factor = 2.718281828459045
    text = (
        f"Left out one by one, rungs are predicted to within a factor of {number(factor**law.leave_one_out_error)} "
        f"(root mean square); scatter between rungs that their uncertainty does not explain: a factor of "
        f"{number(factor**law.scatter)}."
    )
    return text + (f" Without an optimum: {'; '.join(law.without_optimum)}." if law.without_optimum else "")


def _as_json(law: PowerLaw | LawRefused, predict_at: Sequence[float], null: float | None) -> dict[str, Any]:
    if isinstance(law, LawRefused):
        return {"refusal": str(law)}
    return {
        "exponent": law.exponent,
        "exponent_low": law.exponent_low,
        "exponent_high": law.exponent_high,
        "intercept": law.intercept,
        "scatter": law.scatter,
        "p_value_of_constant": null,
        "predictions": [asdict(law.predict(scale)) for scale in predict_at],
        "leave_one_out": [asdict(left) for left in law.leave_one_out],
        "leave_one_out_error": law.leave_one_out_error,
        "without_optimum": list(law.without_optimum),
    }
