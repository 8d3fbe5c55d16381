"""hopinterp: does layer ℓ of a transformer trained on k-hop induction resolve 2^ℓ hops? Find out, layer by layer.

    import hopinterp as hi
    model, task = hi.load("depth5")                    # a HookedTransformer and its HopTask
    batch = task.sample(64, hops=8, seed=0)            # batch.tokens, batch.labels, batch.find [batch, hop, position]
    seen = hi.probe(model, task, hops=8)               # xarray.Dataset: accuracy[layer, hop], control[layer, hop], …
    seen.resolved                                      # R(layer)

The public names stand in `__init__.pyi`, once. Each is imported when it is first used: `import hopinterp` loads neither
torch nor TransformerLens.
"""

__version__ = "0.1.0"
"""The one place that says it: pyproject.toml reads it here, and an installed package's metadata follow."""


def _attach():
    """Read the stub, when a public name is first used: the command imports this package before it can answer a signal."""
    import lazy_loader

    attached = dict(zip(("__getattr__", "__dir__", "__all__"), lazy_loader.attach_stub(__name__, __file__), strict=True))
    globals().update(attached)
    return attached


def __getattr__(name):
    attached = _attach()
    return attached["__all__"] if name == "__all__" else attached["__getattr__"](name)


def __dir__():
    return _attach()["__dir__"]()
