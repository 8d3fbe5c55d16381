"""Work on several k at once: the same results, the first error, and threads as they were."""

from threading import Event

import pytest
import torch

import hopinterp as hi
from hopinterp.decompile.abreast import Stopped, abreast
from hopinterp.theory.construction import Construction


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_two_run_at_once_with_a_thread_each():
    met = {1: Event(), 2: Event()}

    def work(key):
        met[key].set()
        assert met[3 - key].wait(20)  # the other has begun before this one ends
        return torch.get_num_threads()

    assert abreast(work, [2, 1], Event()) == {2: 1, 1: 1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_first_error_stops_the_rest(error):
    stop, begun = Event(), []

    def work(key):
        begun.append(key)
        if key == 0:
            raise error("no")
        assert stop.wait(20)
        raise Stopped

    with pytest.raises(error, match="no"):
        abreast(work, range(5), stop)
    assert torch.get_num_threads() == 2
    assert 4 not in begun


@pytest.mark.usefixtures("two_threads")
def test_several_k_give_what_they_give_alone_on_any_number_of_threads():
    task = hi.HopTask(n_letters=30, alphabet_size=4, max_hops=3)
    made = Construction.of(task, None, "successor").fused
    found = hi.decompile(made, task, [1, 3], sequences=20).to_json()
    torch.set_num_threads(1)
    assert hi.decompile(made, task, [1, 3], sequences=20).to_json() == found
    alone = hi.decompile(made, task, [3], sequences=20)
    assert alone.to_json()["by_hops"]["3"]["tree"] == found["by_hops"]["3"]["tree"]


@pytest.mark.usefixtures("two_threads")
def test_a_report_that_raises_ends_it():
    task = hi.HopTask(n_letters=30, alphabet_size=4, max_hops=3)
    made = Construction.of(task, None, "successor").fused

    def report(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hi.decompile(made, task, [1, 2, 3], sequences=20, report=report)
    assert torch.get_num_threads() == 2
