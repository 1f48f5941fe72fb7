"""The tables of a comparison: rows of finished text for people, rows of numbers for programs."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from atdiff_core.perturbations import Perturbation
from atdiff_core.samplers import Sampler
from pipeline.comparison_results import Cell, ComparisonResult, by_series
from pipeline.report.comparison_wording import effect_text, marked, verdict_text
from pipeline.report.wording import number
from search_spaces.comparison import PLAIN, Arm

UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """A table of finished text; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def arm_table(result: ComparisonResult) -> Table:
    """What each arm is, and what it was given."""
    rows = []
    for arm in result.comparison.arms:
        trials = result.of_arm(arm.name)
        train = result.comparison.trial_config(result.comparison.base_config(""), arm, 0).train
        kpass = train.minibatches * train.kpass_per_minibatch
        images = f"{train.minibatches * train.batch_size / 1000:,.1f}"
        gains = [value for trial in trials if (value := trial.last("train/attack_gain")) is not None]
        gain = number(mean(gains)) if gains else UNKNOWN
        reference = UNKNOWN if arm.name == PLAIN else arm.reference
        rows.append((arm.name, scheme_words(arm), reference, f"{kpass:,.1f}", images, gain, str(len(trials))))
    head = ("arm", "scheme", "reference", "kpass", "thousand distinct images", "attack gain", "seeds")
    return Table("The arms", head, tuple(rows))


def scheme_words(arm: Arm) -> str:
    """The arm's scheme and objective, with whatever is not as usual."""
    return f"{_perturbation_words(arm.perturbation)}; {_unusual(arm.objective, {'kind', 'noise'})}"


def _perturbation_words(perturbation: Perturbation) -> str:
    ball = getattr(perturbation, "ball", None)
    size = f", {ball.norm} radius {number(ball.radius)}" if ball else ""
    return perturbation.kind + size + _settings(perturbation, {"kind", "ball"})


def _unusual(config: object, hidden: set[str]) -> str:
    return str(getattr(config, "kind", "")) + _settings(config, hidden)


def _settings(config: object, hidden: set[str]) -> str:
    fields = getattr(type(config), "model_fields", {})
    names = [name for name, field in fields.items() if name not in hidden and getattr(config, name) != field.default]
    return "".join(f", {name} {getattr(config, name)}" for name in names)


def effect_table(result: ComparisonResult, title: str, cells: Sequence[Cell], metrics: Sequence[Sampler]) -> Table:
    """One row an arm: its mean metric, and its effects against reference and plain.

    Args:
        metrics: Samplers whose metric is shown; none where the effects average over all of them.
    """
    rows = []
    for arm in result.comparison.arms:
        shown = tuple(metric_text(result, arm.name, sampler) for sampler in metrics)
        mine = {cell.against: cell for cell in cells if cell.arm == arm.name}
        reference = UNKNOWN if arm.name == PLAIN else arm.reference
        told = (reference, *_effect_columns(mine.get(arm.reference)), *_effect_columns(mine.get(PLAIN)))
        rows.append((arm.name, *shown, *told))
    head = ("arm", *("metric (extremes)" for _ in metrics))
    head += ("reference", "effect against it (95 %)", "verdict", f"effect against {PLAIN} (95 %)", "verdict")
    return Table(title, head, tuple(rows))


def _effect_columns(cell: Cell | None) -> tuple[str, str]:
    return (UNKNOWN, UNKNOWN) if cell is None else (effect_text(cell.effect), verdict_text(cell))


def metric_text(result: ComparisonResult, arm: str, sampler: Sampler) -> str:
    """Mean over seeds, with the extremes."""
    values = list(result.metrics(arm, sampler).values())
    if not values:
        return UNKNOWN
    return f"{number(mean(values))} ({number(min(values))} to {number(max(values))})"


def grids(result: ComparisonResult) -> list[Table]:
    """For every kind of sampler: metrics, effects against reference and against plain, arm by NFE."""
    cells = {(cell.arm, cell.against, cell.samplers[0]): cell for cell in result.cells}
    arms = result.comparison.arms

    def against(other: Callable[[Arm], str]) -> Callable[[Arm, Sampler], str]:
        return lambda arm, sampler: marked(cells[arm.name, other(arm), sampler])

    tables = []
    for series, samplers in by_series(result.samplers).items():
        head = ("arm", *(f"{sampler.nfe} NFE" for sampler in samplers))
        base = tuple(_base_text(result, sampler) for sampler in samplers)
        values = [(arm.name, *(metric_text(result, arm.name, sampler) for sampler in samplers)) for arm in arms]
        tables.append(Table(f"{series}: metric", head, (("base", *base), *values)))
        others = [arm for arm in arms if arm.name != PLAIN]
        told = {"its reference": against(lambda arm: arm.reference), PLAIN: against(lambda _: PLAIN)}
        for name, text in told.items():
            rows = tuple((arm.name, *(text(arm, sampler) for sampler in samplers)) for arm in others)
            tables.append(Table(f"{series}: effect against {name}", head, rows))
    return tables


def _base_text(result: ComparisonResult, sampler: Sampler) -> str:
    value = result.base_metric(sampler)
    return UNKNOWN if value is None else number(value)


def as_markdown(table: Table) -> str:
    """The table with its title as a heading."""
    lines = [table.head, tuple("---" for _ in table.head), *table.rows]
    return "\n".join([f"### {table.title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def as_csv(result: ComparisonResult) -> str:
    """One row for every arm, every other it is compared with, and every sampler; numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for sampler in result.samplers:
        for arm in result.comparison.arms:
            values = result.metrics(arm.name, sampler)
            described = [arm.name, sampler.label, sampler.nfe, len(values)]
            described += [mean(values.values()), min(values.values()), max(values.values())] if values else ["", "", ""]
            mine = [cell for cell in result.cells if cell.arm == arm.name and cell.samplers == (sampler,)]
            for cell in mine:
                writer.writerow([*described, cell.against, *_csv_effect(cell)])
            if not mine:
                writer.writerow([*described, *[""] * (len(CSV_HEAD) - len(described))])
    return out.getvalue()


CSV_HEAD = (
    *("arm", "sampler", "nfe", "seeds", "metric_mean", "metric_min", "metric_max", "against"),
    *("pairs", "effect_log_ratio", "effect_low", "effect_high", "p_value", "p_holm", "verdict", "verdict_holm"),
)


def _csv_effect(cell: Cell) -> list[object]:
    effect = cell.effect
    numbers = [effect.mean, *effect.interval, effect.p_value, cell.p_holm]
    known = ["" if math.isnan(value) else value for value in numbers]
    return [effect.seeds, *known, effect.verdict, cell.verdict_holm]
