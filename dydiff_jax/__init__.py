"""Forecasting with diffusion models: standard, rolling and dynamical noise schedules in one formalism."""
