"""Fixtures shared by all tests. The authors' files come in through `paper` alone."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import TypeCheckError

from . import executed_shapes

executed_shapes.install("hopinterp")
os.environ["HOPINTERP_CACHE"] = "off"  # no test finds what another, or the user, left; commands that tests start neither

from hopinterp.errors import HopInterpError  # noqa: E402
from hopinterp.models import gpt2  # noqa: E402
from hopinterp.models.fused import FusedTransformer  # noqa: E402
from hopinterp.models.spec import ModelSpec  # noqa: E402
from hopinterp.signals import STOPPING  # noqa: E402
from hopinterp.task import HopTask  # noqa: E402

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("repeatable")  # the same examples on every machine, however slow
torch.set_num_threads(1)  # the models are small: more threads help little, and hurt on a busy machine


@pytest.fixture(autouse=True, scope="session")
def signals_to_stop() -> Iterator[None]:
    """Tests press Ctrl-C and hang up; a suite that a shell starts in the background ignores SIGINT, and under nohup SIGHUP,
    and so do its children."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def refuses(pytestconfig: pytest.Config) -> Callable[[str], AbstractContextManager[None]]:
    """Within `refuses(words)` a HopInterpError of one line with those words is raised; where the suite executes types too
    (--jaxtyping-packages), the checker's error may come first."""
    kinds = (HopInterpError, TypeCheckError) if pytestconfig.getoption("jaxtyping_packages") else HopInterpError

    @contextmanager
    def refusing(words: str) -> Iterator[None]:
        with pytest.raises(kinds) as caught:
            yield
        if isinstance(caught.value, HopInterpError):
            assert re.search(words, str(caught.value))
            assert "\n" not in str(caught.value)

    return refusing


@pytest.fixture(scope="session")
def paper() -> Path:
    """The folder with the authors' checkpoints and error table."""
    folder = Path(os.environ.get("HOPINTERP_PAPER_DIR", Path(__file__).parents[2] / "shared" / "paper"))
    if not (folder / "width4-depth4.pt").is_file():
        pytest.skip(f"the authors' checkpoints are not in {folder} (name their folder in HOPINTERP_PAPER_DIR)")
    return folder


@pytest.fixture(scope="session")
def published(paper: Path) -> dict[str, float]:
    """The error table as the authors published it, keyed "((depth, heads, samples), k)"."""
    return json.loads((paper / "published_errors.json").read_text())


@pytest.fixture(scope="session")
def task() -> HopTask:
    """The paper's size."""
    return HopTask()


@pytest.fixture(scope="session")
def small_task() -> HopTask:
    """Small enough that a model of it runs in milliseconds."""
    return HopTask(n_letters=20, alphabet_size=4, max_hops=4)


@pytest.fixture(scope="session")
def small_model(small_task: HopTask) -> FusedTransformer:
    """Two blocks with random weights, wide enough that patterns and logits are far from uniform."""
    spec = ModelSpec.for_task(small_task, 2, d_model=32, n_heads=2)
    parameters = {name: p * (10 if "W_" in name else 1) for name, p in spec.initial_parameters(seed=3).items()}
    return FusedTransformer(spec, parameters)


@pytest.fixture(scope="session")
def depth3(paper: Path) -> FusedTransformer:
    return gpt2.convert(gpt2.read_state_dict(paper / "width4-depth3.pt"), n_heads=4)


@pytest.fixture(scope="session")
def depth4(paper: Path) -> FusedTransformer:
    return gpt2.convert(gpt2.read_state_dict(paper / "width4-depth4.pt"), n_heads=4)


@pytest.fixture(scope="session")
def depth4_1000_samples(paper: Path) -> FusedTransformer:
    return gpt2.convert(gpt2.read_state_dict(paper / "width4-depth4-samples1k.pt"), n_heads=4)
