"""Trials at one resolution: their metric against NFE, and what their attack did."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from atdiff_core.samplers import Sampler
from pipeline.records import TrialRecord
from pipeline.report.comparisons import adversarial, controls_of, eta_of, family
from pipeline.report.drawing import (
    BLACK,
    ROLE_COLOURS,
    blank_figure,
    legend_below,
    log_x,
    log_y,
    mark_trial,
    replay_colours,
    say,
    trial_legend,
)
from pipeline.results import StudyResult


def arms(study: StudyResult) -> dict[str, list[TrialRecord]]:
    """Base model, controls and leader, each with a record a seed; complete ones only."""
    found = {"base": [study.base]}
    if study.leader is not None:
        found |= {role: controls_of(study, study.leader, role) for role in ("plain", "replay", "random")}
        found["leader"] = family(study, study.leader)
    complete = {name: [r for r in records if r.status == "complete"] for name, records in found.items()}
    return {name: records for name, records in complete.items() if records}


def distance_name(study: StudyResult) -> str:
    evaluation = study.evaluation
    return f"{evaluation.metric_label}\n({evaluation.samples:,} samples)"


def nfe_figure(study: StudyResult) -> Figure:
    """Metric against network evaluations, one panel a sampler; bands are the extremes over seeds."""
    samplers = study.evaluation.samplers
    labels = sorted({sampler.label for sampler in samplers})
    figure, panels = blank_figure(5.4, 3.9, len(labels))
    heights: list[float] = []
    for axes, label in zip(panels, labels, strict=True):
        chosen = sorted((s for s in samplers if s.label == label), key=lambda sampler: sampler.nfe)
        for name, records in arms(study).items():
            judged = [r for r in records if set(chosen) <= set(r.assignment.config.evaluation.samplers)]
            heights += _draw_arm(axes, name, judged, chosen) if judged else []
        log_x(axes, chosen[0].nfe, chosen[-1].nfe + 1)
        axes.set_xticks([sampler.nfe for sampler in chosen], [str(sampler.nfe) for sampler in chosen])
        axes.set_xlabel(f"NFE per image ({label})")
    for axes in panels if heights else []:
        log_y(axes, min(heights), max(heights))
        axes.set_ylim(min(heights) / 1.03, max(heights) * 1.03)
    panels[0].set_ylabel(distance_name(study))
    say(panels[0], f"{study.resolution} px: metric against NFE (lower is better)")
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def _draw_arm(axes: Axes, name: str, records: Sequence[TrialRecord], samplers: Sequence[Sampler]) -> list[float]:
    """Line and band of one scheme; returns every value drawn."""
    columns = [[_distance(record, sampler) for record in records] for sampler in samplers]
    known = [(s.nfe, [v for v in values if v is not None]) for s, values in zip(samplers, columns, strict=True)]
    known = [(nfe, values) for nfe, values in known if values]
    steps = [nfe for nfe, _ in known]
    middles = [sum(values) / len(values) for _, values in known]
    lows, highs = [min(values) for _, values in known], [max(values) for _, values in known]
    seeds = "1 seed" if len(records) == 1 else f"{len(records)} seeds"
    axes.fill_between(steps, lows, highs, color=ROLE_COLOURS[name], alpha=0.15, linewidth=0)
    style = {"base": ":", "replay": "--", "plain": "-."}.get(name, "-")
    axes.plot(steps, middles, style, marker="o", markersize=4, color=ROLE_COLOURS[name], label=f"{name} ({seeds})")
    return [*lows, *highs]


def _distance(record: TrialRecord, sampler: Sampler) -> float | None:
    prefix = record.assignment.config.evaluation.metric_name
    return record.result.get(f"{prefix}/{sampler.name}")


def attack_figure(study: StudyResult) -> Figure:
    """Whether the attack raised the loss, and whether the ball stopped it, for every adversarial trial."""
    figure, (gain, boundary) = blank_figure(5.4, 3.9, 2)
    trials = [trial for trial in adversarial(study) if trial.last("train/attack_gain") is not None]
    colours = replay_colours(trials)
    etas = [eta for trial in trials if (eta := eta_of(trial))]
    for axes, curve in ((gain, "train/attack_gain"), (boundary, "train/boundary_fraction")):
        for trial in trials:
            value, eta = trial.last(curve), eta_of(trial)
            count = trial.assignment.config.train.perturbation.steps_per_minibatch
            if value is not None and eta is not None:
                mark_trial(axes, trial, eta, value, colours[count])
        if etas:
            log_x(axes, min(etas), max(etas), narrow=True)
        axes.set_xlabel("strength η")
    gain.axhline(1, color=BLACK, linestyle="--", linewidth=1)
    gain.set_ylabel("attack gain, loss(δ) / loss(0)")
    boundary.set_ylabel("samples on the boundary")
    boundary.set_ylim(-0.05, 1.05)
    boundary.yaxis.set_major_formatter(PercentFormatter(1.0))
    drawn = [value for trial in (*trials, *study.of_role("random")) if (value := trial.last("train/attack_gain"))]
    log_y(gain, min([1.0, *drawn]), max([1.0, *drawn]))
    for control in study.of_role("random"):
        value, eta = control.last("train/attack_gain"), eta_of(control)
        if value is not None and eta is not None:
            gain.plot([eta], [value], "D", color=ROLE_COLOURS["random"], markersize=5, zorder=5)
    figure.suptitle(_attack_title(study, trials), x=0.02, ha="left", fontsize=11, fontweight="bold")
    handles = trial_legend(trials)
    if study.of_role("random"):
        handles += gain.plot([], [], "D", color=ROLE_COLOURS["random"], label="random direction")
    legend_below(figure, handles)
    return figure


def _attack_title(study: StudyResult, trials: Sequence[TrialRecord]) -> str:
    gains = [gain for trial in trials if (gain := trial.last("train/attack_gain")) is not None]
    if not gains:
        return f"{study.resolution} px: no attack has been reported yet"
    raised = sum(gain > 1 for gain in gains)
    return f"{study.resolution} px: the attack raised the loss in {raised} of {len(gains)} trials"
