"""Scheduled tasks: a task each time that a cron expression says, in a time zone."""
