"""Codecs: physical frames to model space and back."""
