"""What a comparison found, in plain sentences."""

from collections.abc import Sequence

from pipeline.comparison_results import Cell, ComparisonResult
from pipeline.effects import LEVEL, Effect
from pipeline.report.wording import number, percent
from search_spaces.comparison import PLAIN, Pretrained, Scratch
from search_spaces.space import Phase, StudentPhase

MARKS = {"better": "▼", "worse": "▲"}


def effect_text(effect: Effect) -> str:
    """The mean effect with its interval, where there is one."""
    if effect.seeds == 0:
        return "no ratio"
    if effect.seeds == 1:
        return f"{percent(effect.mean)} (one seed)"
    low, high = effect.interval
    return f"{percent(effect.mean)} ({percent(low)} to {percent(high)})"


def marked(cell: Cell) -> str:
    """The effect in a grid: ▼ better, ▲ worse, twice where Holm's adjustment leaves it standing."""
    mark = MARKS.get(cell.effect.verdict, "") + MARKS.get(cell.verdict_holm, "")
    return f"{effect_text(cell.effect)} {mark}".rstrip()


def verdict_text(cell: Cell) -> str:
    """The verdict, and whether Holm's adjustment leaves it standing."""
    verdict = cell.effect.verdict
    if verdict not in MARKS:
        return verdict
    return f"{verdict} (Holm: {'stands' if cell.verdict_holm in MARKS else 'falls'})"


def metric_words(result: ComparisonResult) -> str:
    evaluation = result.comparison.evaluation
    return f"{evaluation.metric_label}, {evaluation.samples:,} samples"


def trial_metric_words(result: ComparisonResult) -> str:
    first = result.samplers[0]
    return f"{metric_words(result)}, {first.label} with {first.nfe} NFE"


def start_sentence(result: ComparisonResult) -> str:
    """What every arm starts from, and how long it trains."""
    comparison = result.comparison
    budget = f"for {number(comparison.finetuning.budget_kpass)} kpass, to within a minibatch."
    match comparison.pretraining:
        case StudentPhase(budget_kpass=kpass):
            base = f"the same student ({number(kpass)} kpass from its teacher's weights, {comparison.resolution} px)"
        case Phase(budget_kpass=kpass):
            base = f"the same base model ({number(kpass)} kpass, {comparison.resolution} px)"
        case Pretrained(snapshot=folder):
            base = f"the same base model ({folder}, {comparison.resolution} px)"
        case Scratch():
            return f"Every arm trains from random weights at {comparison.resolution} px {budget}"
    return f"Every arm fine-tunes {base} {budget}"


def seeds_sentence(result: ComparisonResult) -> str:
    """What the seeds repeat."""
    if isinstance(result.comparison.pretraining, Scratch):
        return f"Seeds repeat the whole training ({result.comparison.seeds} of them)."
    repeated = f"Seeds repeat the fine-tuning ({result.comparison.seeds} of them), not the base model"
    return f"{repeated}: what is found is found for this base."


def sentences(result: ComparisonResult) -> list[str]:
    """What was found, what is missing first."""
    found = [
        unfinished_sentence(result),
        _verdict_sentence(f"At the trial metric ({trial_metric_words(result)})", result.at_trial_metric),
        _verdict_sentence("Averaged over all samplers and NFE, seed by seed", result.overall),
        multiplicity_sentence(result),
        attack_sentence(result),
        seeds_sentence(result),
    ]
    return [sentence for sentence in found if sentence]


def unfinished_sentence(result: ComparisonResult) -> str:
    """What is still missing; empty once every trial is complete."""
    missing = result.planned - sum(trial.status == "complete" for trial in result.trials)
    if not missing:
        return ""
    failed = [trial for trial in result.trials if trial.status == "failed"]
    words = f"This comparison is not finished: {missing} of {result.planned} trials are missing."
    if failed:
        first = failed[0]
        words += f" {len(failed)} failed, {first.assignment.of} with seed {first.seed} first: {first.reason}."
    return words


def _verdict_sentence(where: str, cells: Sequence[Cell]) -> str:
    parts = []
    for verdict, name in (("better", "Better"), ("worse", "Worse")):
        told = [cell for cell in cells if cell.effect.verdict == verdict]
        said = [f"{cell.arm} than {cell.against}, {effect_text(cell.effect)}{_dagger(cell)}" for cell in told]
        parts += [f"{name}: {'; '.join(said)}"] if said else []
    rest = [f"{cell.arm} from {cell.against}" for cell in cells if cell.effect.verdict not in MARKS]
    parts += [f"Not told apart: {'; '.join(rest)}"] if rest else []
    note = " † stands after Holm's adjustment for this list." if any(map(_dagger, cells)) else ""
    return f"{where}. {'. '.join(parts)}.{note}"


def _dagger(cell: Cell) -> str:
    return "†" if cell.verdict_holm in MARKS else ""


def multiplicity_sentence(result: ComparisonResult) -> str:
    """How many effects were looked at, and how many stand once that is allowed for."""
    tested = [cell for cell in result.cells if cell.effect.seeds > 1]
    if not tested:
        return "No effect has two seeds yet, so none has an interval."
    apart = sum(cell.effect.verdict in MARKS for cell in tested)
    stand = sum(cell.verdict_holm in MARKS for cell in tested)
    return (
        f"{len(tested)} effects were looked at (each arm against its reference and against {PLAIN}, with every "
        f"sampler and NFE): {apart} have an interval without zero, where {number(LEVEL * len(tested))} are expected "
        f"if no arm differs; {stand} stand after Holm's adjustment for all of them."
    )


def attack_sentence(result: ComparisonResult) -> str:
    """Whether each arm's perturbation raised the loss it was made to raise."""
    parts = []
    for arm in result.comparison.arms:
        gains = [gain for trial in result.of_arm(arm.name) if (gain := trial.last("train/attack_gain")) is not None]
        if gains and arm.perturbation.kind != "none":
            parts.append(f"{arm.name} {number(sum(gains) / len(gains))}")
    return f"Attack gain, loss(δ) / loss(0), at the end: {', '.join(parts)}." if parts else ""
