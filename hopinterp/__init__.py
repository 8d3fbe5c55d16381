"""hopinterp: does layer ℓ of a transformer trained on k-hop induction resolve 2^ℓ hops? Find out, layer by layer.

    import hopinterp as hi
    model, task = hi.load("path/to/model")             # a HookedTransformer and its HopTask
    batch = task.sample(64, hops=8, seed=0)            # batch.tokens, batch.labels, batch.find [batch, hop, position]
    seen = hi.probe(model, task, hops=8)               # xarray.Dataset: accuracy[layer, hop], control[layer, hop], …
    seen.resolved                                      # R(layer)

Names are imported when they are first used: `import hopinterp` loads neither torch nor TransformerLens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hopinterp.errors import HopInterpError as HopInterpError
    from hopinterp.evidence.ablation import ablate as ablate
    from hopinterp.evidence.ablation import ablated as ablated
    from hopinterp.evidence.attention import align as align
    from hopinterp.evidence.attribution import attribution_patch as attribution_patch
    from hopinterp.evidence.attribution import direct_logit_attribution as direct_logit_attribution
    from hopinterp.evidence.behaviour import evaluate as evaluate
    from hopinterp.evidence.counterfactuals import Pairs as Pairs
    from hopinterp.evidence.counterfactuals import draw_pairs as draw_pairs
    from hopinterp.evidence.interchange import transplant as transplant
    from hopinterp.evidence.patching import patch as patch
    from hopinterp.evidence.paths import path_patch as path_patch
    from hopinterp.evidence.probes import probe as probe
    from hopinterp.evidence.probes import resolved as resolved
    from hopinterp.evidence.subspaces import transplant_subspaces as transplant_subspaces
    from hopinterp.models.fused import FusedTransformer as FusedTransformer
    from hopinterp.models.gpt2 import import_gpt2 as import_gpt2
    from hopinterp.models.spec import ModelSpec as ModelSpec
    from hopinterp.models.store import load as load
    from hopinterp.models.store import load_fused as load_fused
    from hopinterp.models.store import save as save
    from hopinterp.task import Batch as Batch
    from hopinterp.task import HopTask as HopTask
    from hopinterp.theory.construction import construct as construct
    from hopinterp.theory.doubling import mpc_costs as mpc_costs
    from hopinterp.theory.doubling import mpc_hop as mpc_hop
    from hopinterp.training.config import TrainConfig as TrainConfig
    from hopinterp.training.loop import resume as resume
    from hopinterp.training.loop import train as train
    from hopinterp.verdict import verify as verify
    from hopinterp.verdict import verify_all as verify_all
    from hopinterp.views.report import write_report as write_report

_ROOMS = {
    "HopInterpError": "errors",
    "HopTask": "task",
    "Batch": "task",
    "ModelSpec": "models.spec",
    "FusedTransformer": "models.fused",
    "load": "models.store",
    "load_fused": "models.store",
    "save": "models.store",
    "import_gpt2": "models.gpt2",
    "evaluate": "evidence.behaviour",
    "align": "evidence.attention",
    "probe": "evidence.probes",
    "transplant": "evidence.interchange",
    "transplant_subspaces": "evidence.subspaces",
    "resolved": "evidence.probes",
    "construct": "theory.construction",
    "mpc_hop": "theory.doubling",
    "mpc_costs": "theory.doubling",
    "ablate": "evidence.ablation",
    "ablated": "evidence.ablation",
    "attribution_patch": "evidence.attribution",
    "direct_logit_attribution": "evidence.attribution",
    "Pairs": "evidence.counterfactuals",
    "draw_pairs": "evidence.counterfactuals",
    "patch": "evidence.patching",
    "path_patch": "evidence.paths",
    "TrainConfig": "training.config",
    "train": "training.loop",
    "resume": "training.loop",
    "verify": "verdict",
    "verify_all": "verdict",
    "write_report": "views.report",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'hopinterp' has no attribute {name!r}")
    value = getattr(import_module(f"hopinterp.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
