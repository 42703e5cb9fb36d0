"""Denoisers: flax modules of (z, logsnr, conditions). They import nothing of the package but its types."""
