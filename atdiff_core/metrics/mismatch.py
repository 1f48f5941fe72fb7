"""The mismatch of training and sampling, measured: q(x_t) against p(x_t) along a trajectory.

Training shows a network x_t ~ q, data noised to level t; a sampler shows it x_t ~ p, its own state
at that level. Propositions of AT_Diff (Wang et al., arXiv:2502.17099) bound the distance between
the two; here it is estimated from samples of both. The estimator is ours.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from atdiff_core.karras import Noise, signal_and_sigma
from atdiff_core.objectives.drawing import Denoiser
from atdiff_core.randomness import Randomness, derived_seed
from atdiff_core.samplers import FINISHED, Sampler, trajectory

BLOCKS = 10
"""Independent parts of the samples, whose differences are multiplied with one another."""


@dataclass(frozen=True)
class MismatchAt:
    """Distance between q(x_t) and p(x_t) at one level of a trajectory.

    Attributes:
        timestep: Level t as the network is told it, or ``FINISHED`` for the images themselves.
        sigma: Noise level sigma_t of x_t, in [0, 1], or in EDM coordinates; 0 for the images.
        distance: Wasserstein-2 distance in units of the spread of q(x_t): 0.1 means that states
            are off by a tenth of the distance at which x_t itself lies around its mean.
        std_error: Its standard error, over images, noise and latents; these are the same along a
            trajectory, so that neighbouring levels err together.
        floor: What no more than about one measurement in twenty would exceed if p were q. A
            distance below it cannot be told from zero.
    """

    timestep: float
    sigma: float
    distance: float
    std_error: float
    floor: float


def mismatch(
    network: Denoiser,
    noise: Noise,
    sampler: Sampler,
    images: Tensor,
    *,
    samples: int = 2000,
    seed: int = 0,
    principal: int = 32,
    random: int = 32,
    num_classes: int = 0,
    bounded: bool = True,
    batch_size: int = 100,
    device: torch.device | str = "cpu",
) -> Iterator[MismatchAt]:
    """Yields the mismatch before each step of a sampler, and after the last one.

    Both distributions are projected on fixed orthonormal directions. Noise is isotropic, so one
    basis serves every level: the leading principal components of the data, where images differ,
    and random directions orthogonal to them, where there should be nothing but noise. Along each
    direction W2 has a closed form in the quantiles; see ``compared`` for how they are joined and
    what the error means. Models measured with the same seed share images, noise and latents.

    Args:
        images: Clean images ``[images, channels, height, width]`` in [-1, 1]. The first
            ``samples`` stand for q; the others fit the basis, which must not fit those it judges.
        samples: Trajectories, and images to compare them with; a multiple of ``BLOCKS``.
        principal: Principal components. With 0, only directions of noise are seen.
        random: Random directions orthogonal to them. With both adding up to the elements of an
            image, the whole space is seen.
        bounded: Whether samples lie in [-1, 1], as pictures do and latents do not.
        num_classes: Of a conditional network, whose samples get classes drawn uniformly: q and p
            are those of all classes together.

    What it cannot see:
        Dependence between directions, and all directions outside the basis. The sum over
        orthonormal directions of squared one-dimensional W2 never exceeds the squared W2 of the
        joint distributions. Times the spread, the distance therefore is a lower bound (up to its
        error), and zero does not mean that q and p agree.

    Cost:
        ``samples * nfe`` network evaluations, and a few times ``samples`` images of memory.

    Raises:
        ValueError: At once, where samples, images and directions do not fit together.
    """
    _check(images, samples, principal, random)
    basis = data_basis(images[samples:], principal=principal, random=random, seed=seed)
    shape = images.shape[1:]
    batches = [range(samples)[start : start + batch_size] for start in range(0, samples, batch_size)]
    runs = [
        trajectory(
            network,
            noise,
            sampler,
            shape=shape,
            indices=batch,
            seed=seed,
            num_classes=num_classes,
            bounded=bounded,
            device=device,
        )
        for batch in batches
    ]
    gaussian = (Randomness(seed, batch, "mismatch/noise").normal(shape) for batch in batches)
    clean, added = _projected(images[:samples].split(batch_size), basis), _projected(gaussian, basis)
    return _along(runs, noise, clean, added, basis)


def data_basis(images: Tensor, *, principal: int, random: int, seed: int) -> Tensor:
    """Orthonormal directions ``[elements, principal + random]``: principal components, then random ones."""
    flat = images.flatten(1).double()
    drawn = Randomness(seed, range(random), "mismatch/directions").normal(flat.shape[1:]) if random else flat[:0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "mismatch/components"))  # The method is randomised.
        components = torch.pca_lowrank(flat, q=principal, niter=4)[2] if principal else flat[:0].T
    orthonormal: Tensor = torch.linalg.qr(torch.cat([components, drawn.T.double()], dim=1)).Q
    return orthonormal


def compared(forward: Tensor, reverse: Tensor) -> tuple[float, float, float]:
    """Distance, standard error and floor of two sets of projections ``[samples, directions]``.

    The samples are cut into ``BLOCKS`` blocks. In each, the sorted values are empirical quantiles
    and their difference between the sets is a noisy estimate of the difference of the quantile
    functions, whose mean square is W2². Squaring the noisy difference would add its variance,
    which makes equal distributions look different; products of differences of *different* blocks
    do not. Their mean, divided by the summed variance of ``forward``, estimates distance², and can
    fall below zero, which then counts as zero.

    The floor is the root of two standard deviations that the estimate of distance² would have if
    both sets were independent parts of ``forward``, from the differences between its own blocks.
    The error of distance² is a jackknife over the blocks, never below one such deviation; that of
    the distance is half the width of distance² ± one error, taken to the root.

    What remains: a block's quantiles miss the outermost tails, so large distances come out up to
    1 % short at 200 samples a block, and differences finer than a block resolves are blurred.
    """
    spread = forward.var(dim=0).sum()
    if spread == 0:
        raise ValueError("the images do not differ from one another along any direction; give other images")
    ours, theirs = _quantiles(forward), _quantiles(reverse)
    unit = 1 / (spread * ours[0].numel() / forward.shape[1])
    found, jackknife = _crossed(_products(theirs - ours) * unit)
    deviation = _null_deviation(_products(ours - ours.mean(dim=0)) * unit)
    squared, error = max(found, 0), max(jackknife, deviation)
    half_width = (math.sqrt(squared + error) - math.sqrt(max(squared - error, 0))) / 2
    return math.sqrt(squared), half_width, math.sqrt(2 * deviation)


def _along(
    runs: list[Iterator[tuple[float, Tensor]]],
    noise: Noise,
    clean: Tensor,
    added: Tensor,
    basis: Tensor,
) -> Iterator[MismatchAt]:
    """Follows the batches side by side, and compares at every level.

    Args:
        runs: The trajectory of each batch.
        clean: Projected images, ``[samples, directions]``.
        added: Projected noise, ``[samples, directions]``.
    """
    for states in zip(*runs, strict=True):
        timestep = states[0][0]
        signal, sigma = (1.0, 0.0) if timestep == FINISHED else signal_and_sigma(noise, timestep)
        reverse = _projected((state for _, state in states), basis)
        distance, std_error, floor = compared(signal * clean + sigma * added, reverse)
        yield MismatchAt(timestep, sigma, distance, std_error, floor)


def _projected(batches: Iterable[Tensor], basis: Tensor) -> Tensor:
    """Images as their coordinates ``[images, directions]``, float64."""
    return torch.cat([batch.flatten(1).cpu().double() @ basis for batch in batches])


def _quantiles(projections: Tensor) -> Tensor:
    """Sorted values of each block, ``[BLOCKS, samples / BLOCKS, directions]``."""
    return projections.view(BLOCKS, -1, projections.shape[1]).sort(dim=1).values


def _products(functions: Tensor) -> Tensor:
    """Inner product of every block's function with every other's, ``[BLOCKS, BLOCKS]``."""
    flat = functions.flatten(1)
    return flat @ flat.T


def _crossed(products: Tensor) -> tuple[float, float]:
    """Mean over pairs of different blocks, and its jackknife standard error."""
    blocks = len(products)
    others = products.sum(dim=1) - products.diagonal()
    mean = others.sum() / (blocks * (blocks - 1))
    left_out = (others.sum() - 2 * others) / ((blocks - 1) * (blocks - 2))
    return float(mean), float(left_out.std(correction=0) * math.sqrt(blocks - 1))


def _null_deviation(products: Tensor) -> float:
    """Standard deviation of ``_crossed`` for differences between blocks of one distribution.

    Uses <a - b, c - d>² of all four different blocks a, b, c, d: its mean is the variance of one
    product of differences, of which ``_crossed`` averages one for each pair of blocks.
    """
    blocks = len(products)
    a, b, c, d = torch.combinations(torch.arange(blocks), 4).T
    splits = ((a, b, c, d), (a, c, b, d), (a, d, b, c))
    crossed = [products[i, k] - products[i, m] - products[j, k] + products[j, m] for i, j, k, m in splits]
    variance = torch.cat(crossed).square().mean()
    return math.sqrt(float(variance) * 2 / (blocks * (blocks - 1)))


def _check(images: Tensor, samples: int, principal: int, random: int) -> None:
    if samples < 2 * BLOCKS or samples % BLOCKS:
        raise ValueError(f"samples must be a multiple of {BLOCKS}, at least {2 * BLOCKS}, got {samples}")
    spare, elements = len(images) - samples, math.prod(images.shape[1:])
    if spare <= principal:
        raise ValueError(
            f"the basis needs more than {principal} images besides the {samples} compared, "
            f"got {max(spare, 0)}: give more images, fewer samples or fewer principal components"
        )
    if principal < 0 or random < 0 or not 0 < principal + random <= elements:
        raise ValueError(
            f"principal and random directions must be >= 0 and together 1 to {elements} (the elements of "
            f"an image), got {principal} and {random}"
        )
