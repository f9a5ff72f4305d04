"""What the two applications share: run folders, checkpoints, metrics, the run-time environment."""
