"""Plans check themselves; presets are what they say."""

from dataclasses import fields

import pytest

from hopinterp import HopInterpError, ModelSpec, TrainConfig
from hopinterp.training.run import Run, set_rate


def test_the_paper_s_plan():
    config = TrainConfig.preset("paper", layers=4)
    assert config.spec == ModelSpec.paper(4)
    assert (config.steps, config.batch, config.lr, config.warmup, config.dropout) == (100_000, 32, 1e-4, 1000, 0.1)
    assert (config.optimizer, config.curriculum, config.samples, config.short_until) == ("adamw", False, 0, (0, 0))


def test_the_paper_s_learning_rate():
    """Up over 1,000 steps, then linearly to 0 at the end, as the authors' LambdaLR."""
    config = TrainConfig.preset("paper", layers=2, d_model=32)
    run = Run(config)
    for step, expected in ((499, 0.5), (999, 1.0), (50_500, 0.5), (99_999, 1 / 99_000)):
        set_rate(run.optimizers, config, step)
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4 * expected)


def test_presets_take_changes():
    config = TrainConfig.preset("quick", layers=2, lr=None, seed=7)
    assert (config.layers, config.lr, config.seed, config.letters) == (2, 2e-3, 7, 30)
    fixed = TrainConfig.preset("full", samples=1000)
    assert (fixed.curriculum, fixed.short_until) == (False, (0, 0))


def test_deep_models_have_settings_of_their_own_unless_others_are_given():
    shallow, deep = (TrainConfig.preset("full", layers=layers) for layers in (4, 5))
    assert (shallow.lr, shallow.focus, deep.lr, deep.focus) == (2.5e-3, 2, 1.5e-3, 0)
    given = TrainConfig.preset("full", layers=5, focus=2.0)
    assert (given.lr, given.focus) == (1.5e-3, 2)
    assert given.command() == "hopinterp train --preset full --layers 5 --steps 4000 --focus 2.0 --seed 0"
    assert TrainConfig.preset("first", layers=6).lr == TrainConfig.preset("first", layers=2).lr


def test_the_recipe_of_the_shipped_models_is_kept():
    config = TrainConfig.preset("first", layers=4)
    assert (config.steps, config.batch, config.lr, config.short_until) == (7000, 64, 2e-3, (0.2, 0.5))
    assert (config.even_tokens, config.average, config.focus) == (False, 0, 0)


def test_the_command_names_what_differs():
    config = TrainConfig.preset("full", layers=3, steps=50, bf16=False, short_until=(0.0, 0.0), keep_every=9)
    words = "hopinterp train --preset full --layers 3 --steps 50 --short-until 0.0 0.0 --no-bf16 --seed 0"
    assert config.command() == words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "fast"}, "no preset 'fast'"),
        ({"depth": 3}, "no setting 'depth'"),
        ({"steps": 0}, "steps is 0; it must be from 1"),
        ({"lr": -1.0}, "lr is -1.0; it must be above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be muon or adamw"),
        ({"short_until": (0.5, 0.2)}, "two rising shares"),
        ({"seed": -1}, "seed is -1; it must be between 0 and 2\\^32"),
        ({"samples": 10}, "samples is 10; a batch alone has 21"),
        ({"samples": 100, "curriculum": True}, "needs no curriculum"),
        ({"compile": True, "dropout": 0.1}, "draws no dropout"),
        ({"heads": 5}, "5 heads were given"),
        ({"alphabet": 1}, "alphabet_size is 1"),
    ],
)
def test_bad_plans_are_named(settings, words):
    with pytest.raises(HopInterpError, match=words):
        TrainConfig.preset(settings.pop("preset", "full"), **settings)


def test_every_setting_says_what_it_is():
    assert all(one.metadata["help"].endswith(".") for one in fields(TrainConfig))
