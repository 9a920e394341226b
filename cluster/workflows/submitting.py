"""A task that is committed together with the record that asks for it, so that neither is there without the other."""

from cluster.errors import Forbidden
from cluster.identity.model import SYSTEM, Principal
from cluster.identity.records import User
from cluster.store import Store, Write
from cluster.tasks.events import changed
from cluster.tasks.model import Task
from cluster.tasks.service import Tasks, TaskSpec
from cluster.workflows.model import Author


async def submission(tasks: Tasks, who: Principal, spec: TaskSpec, parent_id: str, task_id: str = "") -> Write:
    """The write of one task, checked as `Tasks.submit` checks. An id that follows from its cause is given here."""
    [write] = await tasks.prepare(who, [spec])
    assert isinstance(write.after, Task)
    task = write.after.model_copy(update={"parent_id": parent_id} | ({"task_id": task_id} if task_id else {}))
    return Write(None, task, event=changed(None, task))


async def check_author(store: Store, author: Author) -> None:
    """Return if the village may go on in the author's name. Raises `Forbidden` for a user who may not enter any more.

    What a client's key began goes on without the key, as its webhooks do: it is the client's.
    """
    if author.by_key or author.principal_id == SYSTEM.principal_id:
        return
    user = await store.find(User, author.principal_id)
    if user is None or not user.may_enter:
        raise Forbidden("the user who made it may not sign in any more", user_id=author.principal_id)
