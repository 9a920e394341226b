"""Task templates: a task with defaults, made as often as it is wanted."""
