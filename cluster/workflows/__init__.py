"""Work that makes tasks: chains of steps, schedules, templates."""
