"""Data that several files of this folder train on."""

import pytest
from ar1 import record


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of recordings of an AR(1) process."""
    folder = tmp_path_factory.mktemp("ar")
    record(folder)
    return folder
