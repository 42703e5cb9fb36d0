"""Training: sharded steps, optimizer and EMA, checkpoints, logs and the loop that ties them together."""
