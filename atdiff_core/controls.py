"""The controls of an adversarial run: what remains when one ingredient is taken away.

Arms of one seed share minibatches, noise and latents, so the difference between a run and its
control is far less noisy than either.
"""

from atdiff_core.objectives.denoising import Denoising
from atdiff_core.perturbations import (
    PGD,
    FreeAT,
    GaussianPerturbation,
    Perturbation,
    RandomPerturbation,
    Unperturbed,
)


def replay_control(num_replays: int) -> Unperturbed:
    """The same replays with delta = 0: what replaying alone does. One replay is plain training."""
    return Unperturbed(num_replays=num_replays)


def random_control(perturbation: Perturbation) -> RandomPerturbation:
    """The same replays and sizes in a random direction: what noise alone does.

    PGD's control has one replay, of the size that PGD can reach.
    """
    match perturbation:
        case FreeAT():
            return RandomPerturbation(
                ball=perturbation.ball, num_replays=perturbation.num_replays, step_size=perturbation.step_size
            )
        case PGD():
            size = min(perturbation.num_steps * perturbation.step_size, perturbation.ball.radius)
            return RandomPerturbation(ball=perturbation.ball, num_replays=1, step_size=size, clean_first=False)
        case _:
            raise ValueError(f"only Free-AT and PGD have a random control, got {type(perturbation).__name__}")


def ddpm_ip(objective: Denoising, gamma: float) -> tuple[Denoising, GaussianPerturbation]:
    """DDPM-IP: the input moves by Gaussian noise of gamma sigma_t, the target stays.

    Ning et al., arXiv:2301.11706, Algorithm 2, with gamma = 0.1 (0.15 in its command for CIFAR-10).
    """
    return objective.but(unit="noise", target="stays"), GaussianPerturbation(std=gamma)
