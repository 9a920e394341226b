"""AI Forge: data sources, fine-tuning jobs, validation, export, missions. It answers bare, as its examples do."""

from starlette.types import Scope

from serve_apps.dialects.forge import routes_system
from serve_apps.dialects.forge.errors import CODES, error_body, limit_headers
from serve_apps.kit.dialect import Dialect

DOCUMENTED = (
    ("GET", "/health"),
    ("GET", "/status"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{job_id}"),
    ("GET", "/jobs/{job_id}/metrics"),
    ("GET", "/jobs/{job_id}/logs"),
    ("POST", "/v1/fine-tune"),
    ("DELETE", "/jobs/{job_id}"),
    ("GET", "/jobs/{job_id}/validation"),
    ("POST", "/jobs/{job_id}/export"),
    ("GET", "/models"),
    ("GET", "/models/active"),
    ("POST", "/models/{model_id}/deploy"),
    ("POST", "/models/{model_id}/activate"),
    ("POST", "/models/{model_id}/rollback"),
    ("GET", "/datasets"),
    ("GET", "/datasets/{dataset_id}"),
    ("POST", "/datasets/generate"),
    ("GET", "/data-sources"),
    ("POST", "/data-sources"),
    ("DELETE", "/data-sources/{source_id}"),
    ("POST", "/data-sources/{source_id}/sync"),
    ("GET", "/missions"),
    ("GET", "/missions/{mission_id}"),
    ("POST", "/missions/{mission_id}/approve"),
    ("POST", "/missions/{mission_id}/reject"),
    ("GET", "/artifacts/{artifact_id}"),
    ("GET", "/artifacts/{artifact_id}/content"),
)
RESOURCES = ("jobs", "models", "datasets", "data-sources", "missions", "artifacts")


def bucket(scope: Scope) -> str:
    """Reads, writes and file uploads have limits of their own."""
    if scope.get("method") in ("GET", "HEAD", "OPTIONS"):
        return "read"
    return "upload" if scope["path"] == "/data-sources" and scope.get("method") == "POST" else "write"


FORGE = Dialect(
    name="AI Forge",
    tag="Forge",
    # `/health` is answered by Orchestra's route, with the fields of both documents.
    owns=("/status", "/v1/fine-tune", *(f"/{r}" for r in RESOURCES), *(f"/{r}/" for r in RESOURCES)),
    routers=(routes_system.router,),
    codes=CODES,
    error_body=error_body,
    limit_headers=limit_headers,
    documented=DOCUMENTED[1:],
    invalid_status=422,
    takes_files=frozenset({"/data-sources"}),
    bucket=bucket,
)
