"""Routing: which worker gets which task."""
