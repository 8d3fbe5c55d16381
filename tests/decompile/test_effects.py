"""Which nodes surely matter: groups that do nothing go together, and of nodes that do the same work one stays."""

import torch

from hopinterp.decompile.effects import effects, supported
from hopinterp.decompile.nodes import START, Node

ROWS, SEQUENCES = 120, 30
NEEDED, TWIN, OTHER_TWIN, *IDLE = (Node(0, head, START, "hop", 1) for head in range(8))
ALL = frozenset((NEEDED, TWIN, OTHER_TWIN, *IDLE))


def harm(tree, removed):
    """Half of the rows break without NEEDED; the others without both twins; noise besides, as often good as bad."""
    generator = torch.Generator().manual_seed(len(tree))
    rare = torch.rand(ROWS, 1, generator=generator) < 0.02
    noise = torch.randint(-1, 2, (ROWS, len(removed)), generator=generator) * rare
    broken = torch.zeros(ROWS, len(removed), dtype=torch.float64)
    for number, nodes in enumerate(removed):
        left = tree - nodes
        if NEEDED not in left:
            broken[: ROWS // 2, number] = 1
        if not left & {TWIN, OTHER_TWIN}:
            broken[ROWS // 2 :, number] = 1
    harmed = (broken + noise * (broken == 0)).view(-1, SEQUENCES, len(removed))
    return harmed.sum(0), torch.full(harmed.shape[1:], float(len(harmed)), dtype=torch.float64)


def test_what_does_nothing_goes_and_one_of_two_twins_stays():
    found = supported(harm, effects(harm, ALL, ALL), frozenset)
    assert NEEDED in found
    assert len({TWIN, OTHER_TWIN} & found.keys()) == 1
    assert len(found) == 2
    assert all(effect.low > 0 for effect in found.values())


def test_a_group_that_does_nothing_is_tried_as_one():
    calls = []

    def counted(tree, removed):
        calls.append([len(nodes) for nodes in removed])
        return harm(tree, removed)

    supported(counted, effects(counted, ALL, ALL), frozenset)
    assert max(max(sizes) for sizes in calls) > 1


def test_where_all_matter_nothing_is_measured_again():
    sure = effects(harm, frozenset((NEEDED, TWIN)), frozenset((NEEDED, TWIN)))
    assert supported(None, sure, frozenset) == sure
