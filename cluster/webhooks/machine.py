"""The life of a delivery and of a webhook: retries, claims, replay, rotation, switching off. Pure."""

from datetime import datetime, timedelta

from cluster.errors import Conflict
from cluster.webhooks.model import Attempt, Delivery, DeliveryState, Secret, Webhook

RETRY_AFTER = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
TIMEOUT_SECONDS = 30.0
LEASE = timedelta(seconds=TIMEOUT_SECONDS + 30)  # the answer has to be written down, too
GONE = 410

FAILURES = 10  # deliveries in a row, each with all its attempts, ...
FAILING_FOR = timedelta(hours=24)  # ... over at least this long
STREAK, BACKLOG = 10, 10_000  # attempts failed in a row while that many deliveries wait
MAX_BACKLOG = 100_000  # more wait than a receiver that does answer will ever take

KEPT_ATTEMPTS = 20
KEPT_SECRETS = 3


def claimed(delivery: Delivery, claim: str, at: datetime) -> Delivery:
    """In the hands of one dispatcher until the lease ends. Raises `Conflict` where there is nothing to take."""
    if delivery.next_at is None or delivery.next_at > at:
        raise Conflict("the delivery is not due")
    return delivery.model_copy(update={"claim": claim, "next_at": at + LEASE})


def settled(delivery: Delivery, claim: str, attempt: Attempt, at: datetime) -> Delivery:
    """After an attempt. A failure that comes after the lease has gone to another is that other's business."""
    if delivery.state is not DeliveryState.PENDING or (delivery.claim != claim and not attempt.ok):
        return delivery
    tries = delivery.tries + 1
    update = {
        "attempts": (*delivery.attempts, attempt)[-KEPT_ATTEMPTS:], "attempt_count": delivery.attempt_count + 1,
        "tries": tries, "claim": "", "next_at": None,
    }  # fmt: skip
    if attempt.ok:
        update |= {"state": DeliveryState.DELIVERED, "finished_at": at}
    elif tries > len(RETRY_AFTER) or attempt.status == GONE:
        update |= {"state": DeliveryState.FAILED, "finished_at": at}
    else:
        update["next_at"] = at + RETRY_AFTER[tries - 1]
    return delivery.model_copy(update=update)


def dropped(delivery: Delivery, reason: str, at: datetime) -> Delivery:
    """Given up without an attempt; it may be replayed."""
    if delivery.state is not DeliveryState.PENDING:
        return delivery
    update = {"state": DeliveryState.FAILED, "next_at": None, "claim": "", "error": reason, "finished_at": at}
    return delivery.model_copy(update=update)


def replayed(delivery: Delivery, at: datetime) -> Delivery:
    """Due now, with all its attempts again; unchanged while it is on its way."""
    if delivery.claim and delivery.next_at is not None and delivery.next_at > at:
        return delivery
    update = {"state": DeliveryState.PENDING, "tries": 0, "claim": "", "error": "", "next_at": at, "finished_at": None}
    return delivery.model_copy(update=update)


def judged(hook: Webhook, delivery: Delivery, attempt: Attempt, at: datetime) -> Webhook:
    """The webhook after an attempt that left `delivery` as it is."""
    if not hook.active:
        return hook
    if attempt.ok:
        return hook.model_copy(update={"failures": 0, "failing_since": None}) if hook.failures else hook
    if attempt.status == GONE:
        return disabled(hook, "the receiver answered 410 Gone", at)
    if delivery.state is not DeliveryState.FAILED:
        return hook
    since = hook.failing_since or at
    after = hook.model_copy(update={"failures": hook.failures + 1, "failing_since": since})
    if after.failures >= FAILURES and at - since >= FAILING_FOR:
        return disabled(after, f"{after.failures} deliveries in a row failed since {since:%Y-%m-%d %H:%M} UTC", at)
    return after


def overrun(waiting: int, streak: int) -> str:
    """Why a webhook for which `waiting` deliveries wait must be switched off; empty when it need not be."""
    if waiting > BACKLOG and streak >= STREAK:
        return f"more than {BACKLOG} deliveries wait and the receiver does not take them"
    if waiting > MAX_BACKLOG:
        return f"more than {MAX_BACKLOG} deliveries wait"
    return ""


def disabled(hook: Webhook, reason: str, at: datetime) -> Webhook:
    """Switched off by the village."""
    update = {"active": False, "disabled_at": at, "disabled_reason": reason, "updated_at": at}
    return hook.model_copy(update=update)


def enabled(hook: Webhook, since: str) -> Webhook:
    """Switched on for the events after `since`, its failures forgotten; one that is on stays as it is."""
    if hook.active:
        return hook
    update = {
        "active": True, "since": since, "failures": 0, "failing_since": None, "disabled_at": None,
        "disabled_reason": "",
    }  # fmt: skip
    return hook.model_copy(update=update)


def rotated(hook: Webhook, value: str, grace: timedelta, at: datetime) -> Webhook:
    """A new secret signs; the ones before go on beside it until the grace is over."""
    older = [
        secret.model_copy(update={"until": min(secret.until or at + grace, at + grace)})
        for secret in signing(hook, at)
        if secret.value != value and grace
    ]
    secrets = (Secret(value=value), *older[: KEPT_SECRETS - 1])
    return hook.model_copy(update={"secrets": secrets, "updated_at": at})


def signing(hook: Webhook, at: datetime) -> list[Secret]:
    """The secrets that sign now, newest first."""
    return [secret for secret in hook.secrets if secret.until is None or at < secret.until]
