"""A gateway with every service that needs no Ray, and one record behind every id that a path may name."""

import uuid
from pathlib import Path
from typing import Any

from http_harness import ADMIN, ADMIN_SCOPES, PASSWORD, QUICK, roomy
from scripted_engine import ScriptedEngine
from test_http_models import NotedJobs
from working_agent import registration

from cluster.audit.archive import Archive
from cluster.audit.service import Audit
from cluster.clock import utc_now
from cluster.egress import Egress
from cluster.farm.model import Client, FarmTask, Rank, TaskState
from cluster.farm.order import Order
from cluster.farm.service import Farm
from cluster.identity.model import Principal
from cluster.identity.passwords import Passwords
from cluster.identity.service import Identity
from cluster.limits.limiter import Limiter
from cluster.routing.service import Routing
from cluster.settings import Settings
from cluster.store import Store
from cluster.tasks.explain import Explainer
from cluster.tasks.service import Tasks, TaskSpec
from cluster.trust.service import Trust
from cluster.webhooks.model import Delivery, DeliveryState
from cluster.webhooks.service import Webhooks
from cluster.workers.service import Workers
from cluster.workflows.chains.model import Step
from cluster.workflows.chains.service import Chains
from cluster.workflows.schedules.service import Schedules
from cluster.workflows.templates.service import Templates
from rag.calibration import load
from rag.embedding import MiniLM
from rag.index import ChunkIndex
from rag.service import Knowledge
from serve_apps.chat.service import Chat
from serve_apps.core import Core
from serve_apps.dialects.aifarm.desk import Desk
from serve_apps.kit.hub import Hub
from serve_apps.kit.readiness import Readiness, reachable
from train.models import Models
from train.registry import Model, ModelState
from train.service import Forge


async def whole(url: str, home: Path, minilm: MiniLM) -> Core:
    """Started, with an admin."""
    store = Store(url)
    trust, models, tasks = Trust(store), Models(store, utc_now), Tasks(store)
    settings = Settings(home=home, redis_url=url)
    core = Core(
        settings=settings, store=store, identity=Identity(store, passwords=Passwords(QUICK)),
        limiter=Limiter(url, roomy()), hub=Hub(store), readiness=Readiness({"store": reachable(store)}),
        chains=Chains(store, tasks), schedules=Schedules(store, tasks), templates=Templates(store, tasks),
        tasks=tasks, workers=Workers(store, trust), trust=trust, audit=Audit(store, Archive(home / "audit")),
        webhooks=Webhooks(store, Egress(public_only=False)), routing=Routing(store, trust),
        forge=Forge(store, NotedJobs(), settings, utc_now, models), models=models,
        chat=Chat(store, models, ScriptedEngine(), utc_now),
        knowledge=Knowledge(store, await ChunkIndex.open(home / "lance", MiniLM.size), minilm, load()),
    )  # fmt: skip
    core.explainer = Explainer(store, tasks, trust)
    core.farm = Farm(store, trust, settings)
    core.desk = Desk(core.hub, core.farm)
    core.waits.most_seconds = 0.2  # what waits for something here waits in vain
    await core.start()
    await core.identity.create_user(ADMIN, PASSWORD, ADMIN_SCOPES, "enterprise")
    await core.store.create(
        Model(
            model_id="model_seedling", name=core.chat.default, owner="user_village", public=True, path="/none",
            state=ModelState.COMPLETED, digest="sha256:00", context_length=256, created_at=utc_now(),
        )
    )  # fmt: skip
    return core


async def end(core: Core) -> None:
    """As a replica ends."""
    await core.identity.settled()
    await core.knowledge.close()
    await core.close()


async def bearer(core: Core, username: str = ADMIN, password: str = PASSWORD) -> dict[str, str]:
    """Headers of a new sign-in."""
    return {"Authorization": f"Bearer {(await core.identity.token(username, password)).access_token}"}


async def known(core: Core) -> dict[str, dict[str, str]]:
    """Ids that paths may name, of new records: path parameter -> value, under the path's beginning ("" for any)."""
    name = uuid.uuid4().hex[:8]
    user = await core.identity.create_user(f"owner_{name}", PASSWORD)
    who = await person(core, user.username)
    session = (await core.identity.sessions(who))[0].session_id
    spec = TaskSpec(client_id=name, task_type="sum", capability_required="sums:v1", input_data={})
    [task] = await core.tasks.submit(who, [spec])
    agent = registration(f"agent_{name}", "http://127.0.0.1:9/", ["sums:v1"])
    await core.workers.register(
        who, agent_id=agent["agent_id"], display_name=agent["display_name"], public_key=agent["public_key"],
        endpoint=agent["endpoint"], tags=agent["tags"], signed=agent["signature"], metadata=agent["metadata"],
    )  # fmt: skip
    admin = await person(core, ADMIN)
    key, _ = await core.identity.create_key(admin, f"client_{name}", "Key")
    hook, _ = await core.webhooks.create(who, url="http://127.0.0.1:9/", filters=["task.*"])
    delivery = Delivery(
        delivery_id=f"dlv_{name}", webhook_id=hook.webhook_id, owner=hook.owner, event="task.completed",
        event_id="evt_1-0", at=utc_now(), created_at=utc_now(), state=DeliveryState.FAILED, finished_at=utc_now(),
    )  # fmt: skip
    await core.store.create(delivery)
    work = {"client_id": name, "name": name, "task_type": "sum", "capability_required": "sums:v1"}
    schedule = await core.schedules.create(who, cron_expression="0 0 1 1 *", timezone="UTC", **work)
    template = await core.templates.create(who, **work)
    step = Step(name="sum", task_type="sum", capability_required="sums:v1")
    chain, _ = await core.chains.create(who, client_id=name, name=name, steps=[step])
    run = await core.forge.start(who, [("cognate", {"max_steps": 5})])
    folder = core.settings.home / "models" / f"model_{name}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 300)
    await core.store.create(
        Model(
            model_id=f"model_{name}", name=f"Model {name}", owner=who.owner, state=ModelState.COMPLETED,
            digest="sha256:00", path=str(folder), context_length=256, created_at=utc_now(), completed_at=utc_now(),
        )
    )  # fmt: skip
    document = await core.knowledge.add(who, "The gate opens at nine.", {"title": name})
    anywhere = {
        "task_id": task.task_id, "agent_id": agent["agent_id"], "key_id": key.key_id, "webhook_id": hook.webhook_id,
        "delivery_id": delivery.delivery_id, "model_id": f"model_{name}", "document_id": document.document_id,
        "user_id": user.user_id, "session_id": session, "chain_id": chain.chain_id,
        "schedule_id": schedule.schedule_id, "template_id": template.template_id,
    }  # fmt: skip
    farm = await farmed(core, who, f"client_{name}")
    return {
        "": anywhere, "/v1/models/train/": {"task_id": run.run_id}, "/api/tasks/": farm, "/api/metrics/tasks/": farm,
        "/api/clients/": {"client_id": f"client_{name}"},
    }  # fmt: skip


async def farmed(core: Core, who: Principal, client_id: str) -> dict[str, Any]:
    """A farm task with an average and an upload of a rank that a client holds."""
    farm, at = core.farm, utc_now()
    task = await farm.order(who, Order(type="training", n_clients=2))
    await farm.fleet.connect(who, client_id, "desk", "conn")
    rank = Rank(
        rank_id=f"{task.task_id}.0.0", task_id=task.task_id, owner=who.owner, round=0, rank=0, client_id=client_id,
        upload="rank-0.1.safetensors", assigned_at=at, deadline=at,
    )  # fmt: skip
    for file in (farm.checkpoints.files.average(task.task_id, 0), farm.checkpoints.files.upload(rank)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
    await core.store.create(rank)
    await core.store.change(
        FarmTask, task.task_id,
        lambda now: now.model_copy(update={"state": TaskState.RUNNING, "handed": 1, "averages": (0,)}),
    )  # fmt: skip
    await core.store.change(
        Client, client_id, lambda now: now.model_copy(update={"holds": rank.rank_id, "lease_until": at})
    )
    return {"task_id": task.task_id}


async def person(core: Core, username: str) -> Principal:
    """Who signs in."""
    return await core.identity.authenticate((await bearer(core, username))["Authorization"].removeprefix("Bearer "))


def placed(path: str, ids: dict[str, dict[str, str]]) -> dict[str, str]:
    """The values of a path's parameters, those that are known."""
    found: dict[str, Any] = {}
    for beginning, values in ids.items():
        if path.startswith(beginning):
            found |= {name: value for name, value in values.items() if f"{{{name}}}" in path}
    return found
