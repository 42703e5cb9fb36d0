"""Moments that tests measure are kept in a folder of each test's own, never in the user's cache."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The cache of this test alone: no test finds what another one measured."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DYDIFF_JAX_CACHE", str(folder))
    return folder
