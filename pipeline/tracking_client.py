"""Reaching MLflow: a database file or a server, told at once where it cannot be used."""

import logging
import os
import warnings

from mlflow import MlflowClient

from pipeline.listening import require_listener, without_password

# We repeat what fails ourselves, and look for a run before we create it again; MLflow's own
# repetition of a request whose answer was lost would make a second run, and blocks for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

REMEDY = "start one with `atdiff serve`, or leave --tracking out to record in a file"
UNAUTHORIZED = (401, 403)
SCHEMES = ("sqlite", "postgresql", "http", "https")


def connect(uri: str) -> MlflowClient:
    """A client that was seen to work; the first use of an empty database creates its tables.

    Raises:
        ValueError: Nothing answers there, it refuses us, or it is no MLflow.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if is_server(uri):
        require_listener(uri, what="MLflow server", remedy=REMEDY)
    elif uri.partition(":")[0].partition("+")[0] not in SCHEMES:
        raise ValueError(f"an MLflow address starts with one of {', '.join(SCHEMES)}, got {without_password(uri)!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        except Exception as error:  # SQLAlchemy, the database's driver and MLflow have each their own.
            raise ValueError(_refusal(uri, error)) from None
    return client


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _refusal(uri: str, error: Exception) -> str:
    where, said = without_password(uri), (str(error).strip() or type(error).__name__).splitlines()[0]
    if is_server(uri) and any(f"error code {code}" in said for code in UNAUTHORIZED):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        known = f"user {user!r}" if user else "no user"
        return (
            f"the MLflow server at {where} refuses us ({known} given); "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return f"MLflow cannot use {where}: {said}"
