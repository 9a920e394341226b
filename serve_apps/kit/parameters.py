"""Words for parameters and headers that many routes share, for the OpenAPI document. A route's own words go first."""

from typing import Any

PARAMETERS = {
    "action": "Only entries of this action",
    "active_only": "Leave out keys that were revoked or have expired",
    "agent_id": "An agent, by the id that it registered with",
    "as_of": "The score at this time; now if it is not given. A time without a zone is UTC",
    "artifact_id": "An artifact",
    "chain_id": "A task chain",
    "client_id": "Only those of this client",
    "conversation_id": "A conversation",
    "created_after": "Only those made then or later; a time without a zone is UTC",
    "created_before": "Only those made then or earlier; a time without a zone is UTC",
    "dataset_id": "A dataset",
    "delivery_id": "A delivery of the webhook",
    "document_id": "A document of the knowledge base",
    "end_date": "Until then; a time without a zone is UTC",
    "event_type": "Only entries of this kind",
    "file_id": "A file",
    "ip_address": "Only entries from this address",
    "job_id": "A job",
    "key_id": "An API key, by its id and not by the key",
    "limit": "Results per page",
    "mission_id": "A mission",
    "model_id": "A model, by id or name",
    "offset": "Number of results to skip",
    "period": "How far back, in days",
    "phase": "Only models that went through this phase",
    "priority": "Only those of this priority",
    "schedule_id": "A scheduled task",
    "session_id": "A sign-in, as `GET /auth/sessions` lists it",
    "source_id": "A data source",
    "start_date": "From then on; a time without a zone is UTC",
    "status": "Only those in this state",
    "success": "Only what succeeded, or only what did not",
    "tag": "Only agents with this tag, `capability:version`",
    "tail": "How many lines, from the end",
    "task_id": "A task, or a training run",
    "task_type": "Only those of this type",
    "template_id": "A task template",
    "tier": "Only users of this tier",
    "trust_min": "Only agents with at least this trust",
    "user_id": "A user",
    "webhook_id": "A webhook",
    "x-task-token": "The `task_token` that came with the task",
}

IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "description": "1 to 255 visible ASCII characters: for a day, the same request with the same key gets the first "
    "answer again and is not carried out twice. Counts for signed-in callers",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{0,255}$"},
}  # fmt: skip

TEXT, COUNT = {"type": "string"}, {"type": "integer"}
HEADERS: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The request's id, as logs have it: the caller's own `X-Request-ID` where that is fit, else a "
        "new one",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}, "required": True,
    },
    "RateLimit-Policy": {"description": "Quota `q` and seconds `w` of each window", "schema": TEXT},
    "RateLimit": {"description": "Of the tightest window: requests left `r`, seconds to its end `t`", "schema": TEXT},
    "Retry-After": {"description": "Seconds to wait before trying again", "schema": COUNT, "required": True},
    "WWW-Authenticate": {"description": "Which credential is taken", "schema": TEXT, "required": True},
    "Idempotency-Replayed": {"description": "`true` where this is the first answer again", "schema": TEXT},
}  # fmt: skip
WORDS = {
    "reset-after": "Seconds until the window ends",
    "reset": "When the window ends",
    "remaining": "Requests left in the window",
    "limit": "Requests that the window allows",
    "tier": "The caller's tier",
    "version": "Version of the interface",
}


def limit_header(name: str, example: str) -> dict[str, Any]:
    """A header of a dialect's, as OpenAPI describes it; `example` is a value that the dialect gave it."""
    words = next(words for part, words in WORDS.items() if part in name.lower().replace("ratelimit", ""))
    return {"description": words, "schema": COUNT if example.isdecimal() else TEXT}
