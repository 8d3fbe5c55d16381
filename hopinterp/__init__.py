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
    from hopinterp.evidence.patching.ablation import ablate as ablate
    from hopinterp.evidence.patching.ablation import ablated as ablated
    from hopinterp.evidence.patching.activation import patch as patch
    from hopinterp.evidence.patching.attribution import attribution_patch as attribution_patch
    from hopinterp.evidence.patching.attribution import direct_logit_attribution as direct_logit_attribution
    from hopinterp.evidence.patching.pairs import Pairs as Pairs
    from hopinterp.evidence.patching.pairs import draw_pairs as draw_pairs
    from hopinterp.evidence.patching.path import path_patch as path_patch
    from hopinterp.evidence.reading.attention import align as align
    from hopinterp.evidence.reading.behaviour import evaluate as evaluate
    from hopinterp.evidence.reading.probes import probe as probe
    from hopinterp.evidence.reading.probes import resolved as resolved
    from hopinterp.evidence.transplants.alignment_search import transplant_subspaces as transplant_subspaces
    from hopinterp.evidence.transplants.interchange import transplant as transplant
    from hopinterp.judgement.verdict import verify as verify
    from hopinterp.judgement.verdict import verify_all as verify_all
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
    "evaluate": "evidence.reading.behaviour",
    "align": "evidence.reading.attention",
    "probe": "evidence.reading.probes",
    "transplant": "evidence.transplants.interchange",
    "transplant_subspaces": "evidence.transplants.alignment_search",
    "resolved": "evidence.reading.probes",
    "construct": "theory.construction",
    "mpc_hop": "theory.doubling",
    "mpc_costs": "theory.doubling",
    "ablate": "evidence.patching.ablation",
    "ablated": "evidence.patching.ablation",
    "attribution_patch": "evidence.patching.attribution",
    "direct_logit_attribution": "evidence.patching.attribution",
    "Pairs": "evidence.patching.pairs",
    "draw_pairs": "evidence.patching.pairs",
    "patch": "evidence.patching.activation",
    "path_patch": "evidence.patching.path",
    "TrainConfig": "training.config",
    "train": "training.loop",
    "resume": "training.loop",
    "verify": "judgement.verdict",
    "verify_all": "judgement.verdict",
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
