"""Tasks: submitted, routed, delivered, finished."""
