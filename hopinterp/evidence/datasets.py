"""What every result carries: the model, the task, the version, the seed, and a long name for each variable."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import xarray as xr

from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

LONG_NAMES: dict[str, str] = {
    # coordinates
    "hops": "k, the hop count that the model is asked for",
    "hop": "j of find^j(i); of transplants r, the hops done",
    "layer": "block, counted from 0",
    "head": "head of its block, counted from 0",
    "position": "position in the sequence; 0 is the hop token",
    "where": "at find^j(i), or at the position before it",
    "metric": "what is measured of the answer",
    "component": "part of a block, or of the model",
    "kind": "what takes a part's place",
    "model": "name of the model",
    "family": "what is carried: pointer, content or occurrence",
    # any rate or effect
    "low": "lower end of the 95% interval",
    "high": "upper end of the 95% interval",
    "positions": "positions that count",
    # behaviour
    "error": "err_k, share of answered positions that are wrong",
    "null_error": "share of positions with a null answer that are wrong",
    "solved": "whether the upper end of err_k's interval is at most the bar",
    "failed": "whether the lower end of err_k's interval is above the bar",
    "distinct_error": "err_k at positions on whose chain no letter repeats two hops apart",
    "distinct_low": "lower end of its 95% interval",
    "distinct_high": "upper end of its 95% interval",
    "distinct_solved": "whether that upper end is at most the bar",
    "distinct_positions": "how many such positions were asked",
    "difference": "err_k less that of the first model",
    "difference_low": "lower end of its 95% interval",
    "difference_high": "upper end of its 95% interval",
    "differs": "whether that interval leaves 0 out",
    # attention
    "score": "mean cosine of pattern and 0/1 matrix of find^j",
    "score_valid": "the same over rows where find^j is not null",
    "previous_token": "mean cosine with the matrix of the previous token",
    "task_token": "mean cosine with the matrix of the first position",
    "self_token": "mean cosine with the identity",
    "uniform": "score of a head that attends evenly",
    "uniform_valid": "score_valid of a head that attends evenly",
    "best_hop": "j of the highest score",
    "best_score": "the highest score",
    # probes
    "accuracy": "accuracy on held-out sequences",
    "untrained": "the same on an untrained model of the same sizes",
    "control": "accuracy on a control task (labels drawn at random)",
    "majority": "accuracy of the commonest answer",
    "lower_hops": "accuracy of the best predictor from the letters of lower hops",
    "baseline": "accuracy of the best cheaper explanation",
    "selectivity": "accuracy less that on the control task",
    "held": "whether the lower end closes the bar's share of the gap from baseline to 1",
    "resolved": "R, the largest held hop up to k",
    "frontier": "largest r with hops 1 to r all held",
    # patching
    "effect": "0 where the patch changes nothing, 1 where the answer becomes the other run's",
    "normalised": "effect on the scale where 0 is the corrupt run and 1 the clean one",
    "clean": "the metric of the clean runs",
    "corrupt": "the metric of the corrupt runs",
    "matters": "whether the effect's lower end is above the bar: the light cone",
    "pairs": "pairs that count",
    "off_chain": "effect at a random position that is on no chain",
    "off_chain_low": "lower end of its 95% interval",
    "off_chain_high": "upper end of its 95% interval",
    "estimate": "effect to first order, by the gradient",
    "estimate_low": "lower end of its 95% interval",
    "estimate_high": "upper end of its 95% interval",
    "correlation": "Pearson correlation of estimate and effect over all cells",
    "change": "error without the part, less the whole model's",
    "whole_error": "err_k of the whole model",
    "logit_difference": "logit of the right letter less the counterfactual one's",
    # transplants
    "iia": "interchange intervention accuracy",
    "chance": "largest of unmoved, unrelated and guess",
    "unmoved": "how often the prediction is what the base run answers anyway",
    "unrelated": "how often the answer is the prediction for an unrelated source",
    "guess": "how often the prediction can be guessed from both letters at i",
    "untrained_low": "lower end of the untrained model's interval",
    "leading": "r of the prediction that closes most of the gap from chance to 1",
    "leading_family": "its family",
    "share": "share of the gap from chance to 1 that it closes",
    "share_low": "lower end of that share",
    "contest": "how often it comes true rather than a rival of another r, lower end",
    "family_contest": "how often it comes true rather than another family at its r, lower end",
    "best": "r that the output stands for; -1 where none is clear",
    "best_family": "what is carried, where the output stands for something",
    "model_iia": "interchange intervention accuracy of a causal model of the user's",
    "model_low": "lower end of its 95% interval",
    "model_high": "upper end of its 95% interval",
    # ablation, direct logit attribution, path patching and subspaces, by part
    "head_error": "err_k without the head",
    "head_change": "that less the whole model's",
    "head_low": "lower end of the 95% interval of head_change",
    "head_high": "upper end of the 95% interval of head_change",
    "heads": "what each head writes into the logit difference",
    "heads_low": "lower end of its 95% interval",
    "heads_high": "upper end of its 95% interval",
    "mlp": "what each block's MLP writes into the logit difference",
    "mlp_low": "lower end of its 95% interval",
    "mlp_high": "upper end of its 95% interval",
    "other": "what embeddings and biases write into the logit difference",
    "other_low": "lower end of its 95% interval",
    "other_high": "upper end of its 95% interval",
    "sender_layer": "block of the head that tells, counted from 0",
    "sender_head": "that head, counted from 0",
    "receiver_layer": "block of the head that is told, counted from 0",
    "receiver_head": "that head, counted from 0",
    "prediction": "causal model of the user's",
    "method": "how the subspace was found: full, probe, means, search or random",
    "dimension": "dimensions of the subspace",
    "basis": "orthonormal columns that span the subspace; NaN beyond its dimension",
}
"""What each variable of any result is, by its name; a result in which a name means something else gives its own."""

NATS = ("logit_difference", *(f"{part}{end}" for part in ("heads", "mlp", "other") for end in ("", "_low", "_high")))
"""Variables in units of logits. All others are rates, shares, cosines, counts or labels, and have no unit."""


def described(
    found: xr.Dataset,
    subject: Subject,
    task: HopTask,
    *,
    seed: int,
    long_names: Mapping[str, str] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """The result with its settings, its model (with the digest of its weights, where these alone decide what it computes)
    and task, the version and the seed in attrs, and long names and units on its variables.

    Attrs are what netCDF can hold: numbers, text, and lists of numbers.

    Args:
        long_names: of variables that mean something else here than LONG_NAMES says, or that it does not know.
    """
    sizes = {"n_letters": task.n_letters, "alphabet_size": task.alphabet_size, "max_hops": task.max_hops}
    digest = "" if subject.weights is None else subject.weights.digest()
    attrs = {
        "model": subject.name,
        "model_digest": digest,
        **sizes,
        "version": metadata.version("hopinterp"),
        "seed": seed,
        **settings,
    }
    found = found.assign_attrs({name: int(value) if isinstance(value, bool) else value for name, value in attrs.items()})
    names = {**LONG_NAMES, **(long_names or {})}
    for name in found.variables:
        if str(name) in names:
            found[name].attrs["long_name"] = names[str(name)]
        if name in NATS:
            found[name].attrs["units"] = "nats"
    return found
