"""Webhooks: events of the stream, sent to whoever asked for them."""
