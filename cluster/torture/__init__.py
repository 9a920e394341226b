"""Torture: seeded random load under seeded random faults, and a checker of the whole history."""
