"""Drives a running village through every endpoint of the five APIs; see __main__."""
