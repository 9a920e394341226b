"""Trust: what a worker has earned, as a pure function of its ledger."""
