"""Processes, device meshes and the layout of arrays on them."""
