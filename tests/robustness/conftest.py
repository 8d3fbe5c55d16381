"""One process, where everything is imported, from which all commands of these tests are forked."""

import pytest

from . import faults


@pytest.fixture(scope="session")
def server():
    with faults.server() as made:
        yield made
