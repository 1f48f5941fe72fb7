"""The orchestration of atdiff: Ray, Optuna, MLflow, reports and the command line."""
