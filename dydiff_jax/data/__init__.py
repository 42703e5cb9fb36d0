"""Data: trajectories, windows of frames, and batches as a pure function of (seed, step)."""
