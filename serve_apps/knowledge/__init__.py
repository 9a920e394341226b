"""Knowledge in a replica of its own."""
