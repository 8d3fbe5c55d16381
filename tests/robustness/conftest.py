"""One process, where everything is imported, from which all commands of these tests are forked."""

import pytest

from . import faults


@pytest.fixture(scope="session")
def server():
    with faults.server() as made:
        yield made


@pytest.fixture(scope="module")
def small(server, tmp_path_factory):
    """A directory with a small model m and a state dict s.pt."""
    from .test_crash_points import CONSTRUCT  # not before pytest has rewritten its assertions

    where = tmp_path_factory.mktemp("small")
    assert server.run(*CONSTRUCT, cwd=where).status == 0
    assert server.run(":gpt2", "s.pt", cwd=where).status == 0
    return where
