"""How often who may call what."""
