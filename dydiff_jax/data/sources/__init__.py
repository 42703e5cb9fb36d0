"""Data sources: each makes or opens trajectories."""
