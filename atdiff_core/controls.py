"""The controls of an adversarial run: what remains when one ingredient is taken away.

Arms of one seed share minibatches, noise and latents, so the difference between a run and its
control is far less noisy than either.
"""

from atdiff_core.perturbations import PGD, FreeAT, Perturbation, RandomPerturbation, Unperturbed


def plain_control(perturbation: Perturbation) -> Unperturbed:
    """Ordinary training: at equal passes it sees more distinct images than Free-AT."""
    return Unperturbed()


def replay_control(perturbation: Perturbation) -> Unperturbed:
    """The same replays with delta = 0: what replaying alone does."""
    return Unperturbed(num_replays=perturbation.steps_per_minibatch)


def random_control(perturbation: Perturbation) -> RandomPerturbation:
    """The same sizes in a random direction: what noise alone does.

    Free-AT's control has its replays too. PGD's has a clean replay and one of the size that PGD
    can reach.
    """
    match perturbation:
        case FreeAT() | RandomPerturbation():
            replays, step_size = perturbation.num_replays, perturbation.step_size
        case PGD():
            replays, step_size = 2, min(perturbation.num_steps * perturbation.step_size, perturbation.ball.radius)
        case _:
            raise ValueError("an unperturbed run has no random control: there is no size to give it")
    return RandomPerturbation(ball=perturbation.ball, num_replays=replays, step_size=step_size)
