"""Flow solvers in JAX: pure functions that run on any device."""
