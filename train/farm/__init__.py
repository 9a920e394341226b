"""The AI Farm's reference client: trains what a farm assigns, on a machine that is not in the cluster."""
