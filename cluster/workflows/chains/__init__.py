"""Task chains: one step after the other, each with the result of the one before."""
