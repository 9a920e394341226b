"""The store: every durable record, its indexes and the event of each change, in Redis."""

from cluster.store.indexes import Index, Record
from cluster.store.store import Page, Store, Write

__all__ = ["Index", "Page", "Record", "Store", "Write"]
