"""hopinterp: does layer ℓ of a transformer trained on k-hop induction resolve 2^ℓ hops? Find out, layer by layer.

    import hopinterp as hi
    model, task = hi.load("depth5")                    # a HookedTransformer and its HopTask
    batch = task.sample(64, hops=8, seed=0)            # batch.tokens, batch.labels, batch.find [batch, hop, position]
    seen = hi.probe(model, task, hops=8)               # xarray.Dataset: accuracy[layer, hop], control[layer, hop], …
    seen.resolved                                      # R(layer)

The public names stand in `__init__.pyi`, once. Each is imported when it is first used: `import hopinterp` loads neither
torch nor TransformerLens.
"""

import lazy_loader

__version__ = "0.1.0"
"""The one place that says it: pyproject.toml reads it here, and an installed package's metadata follow."""

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
