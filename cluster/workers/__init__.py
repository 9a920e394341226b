"""Workers: whoever can be given a task."""
