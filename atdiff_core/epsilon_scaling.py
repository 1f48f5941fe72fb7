"""Epsilon scaling: a remedy at sampling time for networks that predict too much noise."""

from typing import Annotated

from pydantic import Field

from atdiff_core.config import Config


class EpsilonScaling(Config):
    """Divide the predicted noise by lambda(i) = slope * i + constant inside the prediction of x_0.

    Sampling shows a network noisier inputs than training did, so it predicts too much noise. The
    index i counts the levels that a sampler visits: 0 is the cleanest, ``nfe - 1`` the noisiest.

    Attributes:
        constant: lambda at the cleanest level. One, with slope zero, is no scaling.
        slope: Growth of lambda from one level to the next noisier one.

    Source:
        Ning et al., arXiv:2308.15321 (ADM-ES). With ancestral sampling of ADM on CIFAR-10 they use
        the constant 1.017. AT_Diff (arXiv:2502.17099) uses it at every NFE.
    """

    constant: Annotated[float, Field(gt=0)] = 1.0
    slope: float = 0.0

    def at(self, index: int) -> float:
        """lambda(i)."""
        return self.slope * index + self.constant

    @property
    def label(self) -> str:
        """Say ``_es1.017``, with the slope behind it where there is one; empty without scaling."""
        if self == EpsilonScaling():
            return ""
        return f"_es{short(self.constant)}" + (f"_{short(self.slope)}" if self.slope else "")


def short(number: float) -> str:
    """A number as labels show it: 1 for 1.0."""
    return str(number).removesuffix(".0")
