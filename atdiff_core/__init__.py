"""The science of atdiff: perturbations, objectives, training, data, metrics and the law.

Knows nothing of ray, optuna, mlflow or the command line.
"""

from atdiff_core import torchvision_guard

torchvision_guard.install()
