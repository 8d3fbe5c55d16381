"""What the hypotheses predict, from the definitions."""

import pytest

from hopinterp import HopInterpError
from hopinterp.theory.hypotheses import resolved


def test_predictions():
    assert resolved("lookup", 16, 7) == [0, 1, 2, 4, 8, 16, 16]
    assert resolved("successor", 16, 6) == [0, 1, 3, 7, 15, 16]
    assert resolved("sequential", 3, 6) == [0, 1, 2, 3, 3, 3]
    with pytest.raises(HopInterpError, match="no hypothesis 'magic'"):
        resolved("magic", 1, 1)
