"""Who calls: users, API keys and tokens, as one kind of principal."""

from cluster.identity.model import Principal

__all__ = ["Principal"]
