"""The audit log: who did what, from where, in one hash-chained sequence that is only ever added to."""
