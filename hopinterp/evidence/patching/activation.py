"""What putting one activation of another run in does to the answer, at every site, by position and along the chain."""

from __future__ import annotations

from typing import SupportsIndex, Unpack

import xarray as xr

from hopinterp.engine.sweeps import RESID_SITES
from hopinterp.evidence.patching.effects import measure
from hopinterp.evidence.patching.pairs import PairSettings, choose_pairs
from hopinterp.evidence.patching.positions import By, Cells
from hopinterp.evidence.patching.runs import MEMORY, Direction, PairedRuns, SweptRuns
from hopinterp.evidence.remembered import remembered
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Report
from hopinterp.task import HopTask


@remembered(fills=choose_pairs)
def patch(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    site: str = "resid_post",
    by: By = "position",
    direction: Direction | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    report: Report | None = None,
    by_hooks: bool = False,
    **settings: Unpack[PairSettings],
) -> xr.Dataset:
    """Activation patching (Vig et al. 2020, Meng et al. 2022): what one activation's exchange does to the answer at i.

    *Denoising* runs the corrupt sequence with an activation of the clean run: is it enough for the clean answer? *Noising*
    runs the clean sequence with an activation of the corrupt run: is it needed? Places, for every block (and head):

    - by "position": each position of the sequence, as TransformerLens's pictures have it. Denoising by default.
    - by "chain": the clean chain's positions find^j(i), j = 0 … k, and the position before each, where the link's key stands
      until block 0 has moved it: the causal light cone, where the information that the answer needs is at each block.
      Noising by default: with an independent counterfactual (resample) the corrupt run's own chain goes elsewhere, so a
      single clean activation can bring back the answer only at i itself, while noise anywhere on the way breaks it. For
      one-link pairs both are meaningful: denoising follows the news of the link's change on its way to i.
    - by "all": all positions at once.

    A noised pointer goes somewhere, and by chance to the right letter (one time in |Σ| or so): accuracy and probability
    then fall by about 1 − 1/|Σ|, not by 1; and to the counterfactual's letter no oftener than to another, so the logit
    difference falls by about half. What breaks is plainest in probability.

    Args:
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, or of each head z, q, k, v, pattern (the query's row).
        seed: of the pairs, the control and the bootstrap.
        memory: bytes for the activations of runs that are batched together.
        report: called as patched runs are done (or pairs of sequences, where the sweeps serve), then after each metric.
        by_hooks: by the simple path, a whole run with a hook for each patch, even where faster sweeps give the same (they
            serve the sites outside the heads, and z, on models whose weights can be used).
        settings: pairs, link, position, sequences: see `PairSettings`.

    Returns:
        Dims metric (logit_difference, probability, accuracy), layer, head (per-head sites), and position, or hop (j) and
        where ("at" find^j(i), or "before" it). `effect` with `low`, `high` (95%, bootstrap over pairs): Σ (patched −
        unpatched) / Σ (other run − unpatched), 0 where nothing changes and 1 where the whole other run came in;
        `normalised`, the same on the scale where 0 is the corrupt run and 1 the clean one (1 − effect when noising). NaN
        where the metric does not tell the clean from the corrupt run. `clean`, `corrupt` [metric]: the unpatched runs. By
        chain also `pairs` [hop, where], how many count (where a place is both on the chain and before it, see
        `Pairs.distinct`, the pair is left out), the control `off_chain` with `off_chain_low`, `off_chain_high`: the effect
        at one random place before i that is neither, and `matters` [metric, layer, …, hop, where], the light cone itself:
        whether `low` is above the bar (in attrs), half of what breaking every answer would show.

    Raises:
        HopInterpError: a setting out of range, or a site that the model lacks.
        RuntimeError: a patch changed nothing where the two runs differ.
    """
    subject = Subject.asked(model, task)
    found_site = subject.site(site)
    fast = subject.weights is not None and site in (*RESID_SITES, "z") and by != "all" and not by_hooks
    runs = (SweptRuns if fast else PairedRuns).of(subject, task, hops, seed, by, direction, **settings)
    cells = Cells.of(runs.pairs, by, seed)
    values = measure(runs.patched(found_site, cells.positions, memory, report), runs.pairs.right, runs.pairs.wrong)
    found = runs.normalised(cells.dataset(values, runs.scale, found_site.per_head, seed, report))
    if by != "chain":
        return runs.described(found, seed, site=site, by=by)
    found["matters"] = found.low > runs.bar
    return runs.described(found, seed, site=site, by=by, bar=runs.bar)
