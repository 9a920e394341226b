"""AI Farm: training tasks for machines outside the cluster, which come to us over a WebSocket."""
