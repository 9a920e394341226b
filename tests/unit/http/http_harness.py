"""What the tests of endpoints share beside their fixtures."""

import httpx
from argon2 import PasswordHasher

from cluster.limits import policy

ADMIN, PASSWORD = "admin@village.local", "correct horse"
ADMIN_SCOPES = frozenset({"read", "write", "admin"})
QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)

Client = httpx.AsyncClient


def roomy() -> policy.Policy:
    """The shipped policy with limits that no test meets unless it wants to."""
    shipped = policy.load()
    tiers = {tier: dict.fromkeys(spans, 1_000_000) for tier, spans in shipped.tiers.items()}
    dialects = {
        name: {bucket: dict.fromkeys(spans, 1_000_000) for bucket, spans in buckets.items()}
        for name, buckets in shipped.dialects.items()
    }
    return policy.Policy(tiers=tiers, dialects=dialects)
