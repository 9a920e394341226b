"""The store: every durable record, its indexes and the event of each change, in Redis."""

from cluster.store.indexes import Index, Record
from cluster.store.sets import Page
from cluster.store.store import Guard, Store, Write

__all__ = ["Guard", "Index", "Page", "Record", "Store", "Write"]
