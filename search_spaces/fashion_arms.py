"""Fashion-MNIST at 16 pixels: what of adversarial training helps, and what is replaying or noise.

    atdiff shards fashion-mnist /usr/share/datasets/fashion-mnist --out data/fashion --resolutions 16
    atdiff compare search_spaces/fashion_arms.py

The network learns its variance, as ADM's do, so that every sampler of the papers can judge it. Every
attack has the same largest size, an l-infinity amplitude, and reaches it with its last step. The
budget is a multiple of every arm's minibatch, so passes are equal exactly. Costs 256 kpass for the base
model and 9.4 for each of 24 trials; judging a trial takes longer than training it (128 images by 20
samplers). It took 77 minutes on two CPU cores beside other work.
"""

from atdiff_core.balls import LInfBall
from atdiff_core.controls import ddpm_ip
from atdiff_core.epsilon_scaling import EpsilonScaling
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.equivariant import Equivariant
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import PGD, FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from search_spaces.comparison import Arm, Comparison
from search_spaces.space import Phase

ball = LInfBall(radius=0.05)
step = ball.radius / 2
seen = Denoising(noise=NoiseSchedule(kind="cosine"), variance="learned", attack_sees_target=True)
unseen = seen.but(attack_sees_target=False)

controls = (
    Arm(name="plain", objective=seen, perturbation=Unperturbed()),
    Arm(name="replay", objective=seen, perturbation=Unperturbed(num_replays=3)),
    Arm(
        name="random",
        objective=seen,
        perturbation=RandomPerturbation(ball=ball, num_replays=3, step_size=step),
        reference="replay",
    ),
)
attacks = (
    Arm(
        name="free-at-seen",
        objective=seen,
        perturbation=FreeAT(ball=ball, num_replays=3, step_size=step),
        reference="replay",
    ),
    Arm(
        name="free-at-unseen",
        objective=unseen,
        perturbation=FreeAT(ball=ball, num_replays=3, step_size=step),
        reference="replay",
    ),
    Arm(name="pgd", objective=seen, perturbation=PGD(ball=ball, num_steps=2, step_size=step)),
)
ip_objective, ip_noise = ddpm_ip(seen, gamma=0.1)
sign_step = PGD(ball=LInfBall(radius=1), num_steps=1, step_size=1, start="random")
others = (
    Arm(name="ddpm-ip", objective=ip_objective, perturbation=ip_noise),
    Arm(name="equivariant", objective=Equivariant(noise=seen.noise, variance="learned"), perturbation=sign_step),
)
trial_sampler = Sampler(kind="ddim", nfe=10)
nfes = (5, 8, 10, 20, 50)
samplers = (
    *(Sampler(kind="iddpm", nfe=nfe) for nfe in nfes),
    *(Sampler(kind="iddpm", nfe=nfe, epsilon_scaling=EpsilonScaling(constant=1.017)) for nfe in nfes),
    *(Sampler(kind="dpmpp_2m", nfe=nfe, spacing="log_snr") for nfe in nfes),
    *(Sampler(kind="ddim", nfe=nfe) for nfe in nfes),
)

comparison = Comparison(
    name="fashion-arms",
    shards="data/fashion",
    network=preset("digits", resolution=16, image_channels=1).but(learned_variance=True),
    objective=seen,
    pretraining=Phase(
        budget_kpass=256,
        optimization=Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=10),
    ),
    finetuning=Phase(
        budget_kpass=9.408,
        optimization=Optimization(learning_rate=2e-4, decay="linear", ema_half_life_kpass=2),
    ),
    arms=(*controls, *attacks, *others),
    seeds=3,
    evaluation=EvaluationConfig(
        samples=128, samplers=(trial_sampler, *(each for each in samplers if each != trial_sampler))
    ),
)
