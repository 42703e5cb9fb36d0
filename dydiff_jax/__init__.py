"""Forecasting with diffusion models: standard, rolling and dynamical noise schedules in one formalism."""

import time

#: When the package was first imported, by ``time.monotonic``: the start of a run, but for Python's own.
BEGAN = time.monotonic()
