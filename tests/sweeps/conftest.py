"""A sweep of cells so small that each takes a fraction of a second."""

import pytest

TINY = {"d_model": 8, "heads": 1, "letters": 6, "alphabet": 3, "max_hops": 2, "batch": 2, "steps": 12}
TINY |= {"checkpoint_every": 4, "log_every": 4, "eval_every": 0, "bf16": False}


@pytest.fixture(scope="session")
def tiny():
    """Settings of a grid, each changed or added to by keyword."""

    def table(**changed):
        return {**TINY, "after": {"sequences": 20}, **changed}

    return table
