"""Orchestration: studies, Ray, Optuna, MLflow, reports and the command line."""

import os

for _switch, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # Read when MLflow is imported, wherever that is.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_switch, _value)
