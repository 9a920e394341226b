"""The one event stream: every change of state appends to it, and every watcher reads it."""

from cluster.events.model import Event

__all__ = ["Event"]
