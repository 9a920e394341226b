"""AI Forge: data sources, datasets, fine-tuning jobs, export, models, missions."""

from typing import Any

from contract.conformance.platform import EXAMPLES, RUN, SAMPLE, Platform

CODE = b'''def calculate_sum(a, b):
    """Add two numbers."""
    return a + b


class Stack:
    """A last-in first-out list."""
    def push(self, item):
        self.items.append(item)
'''
FINE_TUNE = "forge POST /v1/fine-tune"


def run(p: Platform) -> None:
    """The whole document."""
    p.call("forge GET /health")
    p.call("forge GET /status")
    gone = p.get("/jobs/none")
    p.error("forge: an unknown job is 404 in the documented form", gone, 404, None, "message")
    source = data_source(p)
    dataset = datasets(p, source) if source else ""
    if dataset:
        job(p, dataset)
        models(p)
    if source:
        missions(p)
        p.call("forge DELETE /data-sources/{source_id}", path={"source_id": source})


def data_source(p: Platform) -> str:
    """Its id, or nothing where there are none."""
    files = [
        ("files", ("calc.py", CODE, "text/x-python")), ("files", ("readme.md", SAMPLE.encode(), "text/markdown"))
    ]  # fmt: skip
    sent = p.post("/data-sources", data={"name": f"repo-{RUN}", "includePatterns": "*.py,*.md"}, files=files)
    source = p.judge("forge POST /data-sources", sent, {200, 201}).get("sourceId", "")
    if not source:
        return ""
    p.call("forge POST /data-sources/{source_id}/sync", path={"source_id": source})

    def synced() -> bool:
        return any(s["id"] == source and s["status"] == "synced" for s in p.get("/data-sources").json())

    p.wait("forge: the source is synced", 60, synced)
    p.call("forge GET /data-sources")
    return source


def datasets(p: Platform, source: str) -> str:
    body = {"name": f"set-{RUN}", "sourceIds": [source], "format": "alpaca", "maxExamples": 50}
    dataset = p.call("forge POST /datasets/generate", body=body).get("datasetId", "")
    if not dataset:
        return ""

    def filled() -> bool:
        return any(d["id"] == dataset and d["exampleCount"] > 3 for d in p.get("/datasets").json())

    p.wait("forge: the dataset has examples", 120, filled)
    p.call("forge GET /datasets")
    shown = p.call("forge GET /datasets/{dataset_id}", path={"dataset_id": dataset})
    preview = shown.get("preview") or [{}]
    p.check.that(
        "forge: the preview is alpaca", {"instruction", "input", "output"} <= preview[0].keys(), str(shown)[:200]
    )
    answer = p.post("/v1/fine-tune", {"projectName": "p", "datasetId": dataset, "epochs": 99})
    good = answer.status_code in (400, 422) and {"status", "message", "detail"} <= answer.json().keys()
    p.check.that("forge: 99 epochs is a 400 or 422 in the documented form", good, answer.text)
    return dataset


def order(p: Platform, name: str, dataset: str, **over: Any) -> dict[str, Any]:
    """A fine-tuning order that a laptop finishes."""
    known = p.get("/models").json()
    small = {"rank": 8, "gradientAccumulation": 1, "baseModel": known[0]["name"] if known else "seedling"}
    return EXAMPLES[FINE_TUNE]["request"] | small | {"projectName": f"{name}{RUN}", "datasetId": dataset} | over


def job(p: Platform, dataset: str) -> None:
    job_id = p.call(FINE_TUNE, body=order(p, "project", dataset, epochs=1, batchSize=2, warmupSteps=2)).get("jobId", "")
    if not job_id:
        return
    path = {"job_id": job_id}
    p.wait("forge: the job completes", 300, lambda: p.get(f"/jobs/{job_id}").json().get("status") == "completed")
    p.call("forge GET /jobs")
    p.call("forge GET /jobs/{job_id}", path=path)
    curve = p.call("forge GET /jobs/{job_id}/metrics", path=path)
    losses = curve.get("losses", [])
    good = len(curve.get("steps", [])) == len(losses) == len(curve.get("gradNorms", [])) > 2
    good = good and min(losses) < losses[0]
    p.check.that("forge: the loss curve has one point a step and falls", good, str(curve)[:200])
    p.call("forge GET /jobs/{job_id}/logs", path=path, params={"tail": 20})
    p.call("forge GET /jobs/{job_id}/validation", path=path)
    export = p.call(
        "forge POST /jobs/{job_id}/export", path=path, body={"quantization": "q8_0", "deployToOllama": False}
    )
    p.check.that("forge: the export is a GGUF file", str(export.get("outputPath", "")).endswith(".gguf"), export)
    running = p.post("/v1/fine-tune", order(p, "stop", dataset, epochs=10, batchSize=1)).json().get("jobId", "none")
    p.call("forge DELETE /jobs/{job_id}", path={"job_id": running})


def models(p: Platform) -> None:
    listed = p.call("forge GET /models")
    mine = next((m for m in listed if f"project{RUN}" in m["name"]), None) if isinstance(listed, list) else None
    if mine is None:
        return
    path = {"model_id": mine["id"]}
    p.call("forge POST /models/{model_id}/activate", path=path)
    active = p.call("forge GET /models/active")
    p.check.that("forge: the activated model is the active one", active.get("id") == mine["id"], active)
    deployed = p.post(f"/models/{mine['id']}/deploy")
    p.called.add("forge POST /models/{model_id}/deploy")
    told = f"{deployed.status_code} {deployed.text[:200]}"
    good = deployed.status_code == 200 and bool(deployed.json().get("ollamaName"))
    good = good or (deployed.status_code == 503 and "ollama" in deployed.text.lower())
    p.check.that("forge: deploy deploys, or says that no Ollama answers", good, told)
    p.call("forge POST /models/{model_id}/rollback", path=path)


def missions(p: Platform) -> None:
    files = [("files", (f"new{i}.py", CODE.replace(b"Stack", b"Stack%d" % i), "text/x-python")) for i in range(20)]
    p.post("/data-sources", data={"name": f"repo-{RUN}-2"}, files=files)
    if not p.call("forge GET /missions"):
        return

    def raised() -> Any:
        return p.get("/missions", params={"status": "pending_approval"}).json().get("missions")

    found = p.wait("forge: new data raises a mission", 60, raised)
    if not found:
        return
    path = {"mission_id": found[0]["id"]}
    whole = p.call("forge GET /missions/{mission_id}", path=path)
    p.call("forge POST /missions/{mission_id}/reject", path=path, body={"reason": "conformance"})
    p.called.add("forge POST /missions/{mission_id}/approve")
    decided = p.post(f"/missions/{found[0]['id']}/approve", {"comment": "x"}).status_code
    p.check.that("forge: a decided mission cannot be approved", decided in (400, 409), decided)
    if whole.get("artifacts"):
        path = {"artifact_id": whole["artifacts"][0]["id"]}
        p.call("forge GET /artifacts/{artifact_id}", path=path)
        p.call("forge GET /artifacts/{artifact_id}/content", path=path)
