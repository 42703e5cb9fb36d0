"""Codecs: physical frames to model space and back. Importing the package fills `CODECS`."""

from dydiff_jax.codecs import pointwise as pointwise
from dydiff_jax.codecs.codec import CODECS, Codec, CodecOptions, Scale

__all__ = ["CODECS", "Codec", "CodecOptions", "Scale"]
