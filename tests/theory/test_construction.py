"""The constructed models: exact answers, margins, depths, the printed proof's slip, and what carries or refuses them."""

import math

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models import store
from hopinterp.models.spec import ModelSpec
from hopinterp.theory.causal import Target
from hopinterp.theory.compiler import MARGIN, compile_program
from hopinterp.theory.construction import ALGORITHMS, Construction, construct
from hopinterp.theory.doubling import mpc_hop
from hopinterp.theory.margins import margins
from hopinterp.theory.program import PREVIOUS_LETTER, SYMBOL, Head, Last, Move, Program, SameLetter
from hopinterp.theory.programs import printed


def letters(task, count, seed):
    """Four letters of the alphabet a sequence, so that long chains are common; every other one with repeated neighbours."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, task.alphabet_size, generator=generator).argsort(1)[:, :4]
    steps = torch.randint(1, 4, (count, task.n_letters), generator=generator).cumsum(1) % 4
    uniform = torch.randint(4, (count, task.n_letters), generator=generator)
    return chosen.gather(1, torch.where(torch.arange(count)[:, None] % 2 == 0, steps, uniform))


@torch.no_grad()
def count_errors(model, batch):
    return int((model(batch.tokens).argmax(-1) != batch.labels)[:, 1:].sum())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("n", "alphabet", "positions"), [(100, 4, 100_000), (100, 26, 10_000), (500, 4, 10_000)])
def test_no_answer_is_wrong(algorithm, n, alphabet, positions):
    task = hi.HopTask(n, alphabet, 16)
    # the deep ones cost most: with 26 letters, fewer of them
    for k in range(1, 17) if alphabet == 4 and n == 100 else (1, 2, 3, 5, 8, 11, 16):
        model = Construction.of(task, k, algorithm).fused
        long_chains = 0
        for seed in range(0, positions, 100 * n):
            batch = task.from_letters(letters(task, max(1, min(100, positions // n)), seed + k), k)
            assert count_errors(model, batch) == 0, (k, seed)
            chain = batch.find[:, : k + 1]
            long_chains += int(((chain > 0).all(1) & (chain.diff(dim=1) < 0).all(1)).sum())
        assert long_chains > positions / 5, k  # chains of k distinct links were there to be followed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("alphabet", [4, 26])
def test_the_multi_task_model_reads_k(algorithm, alphabet):
    task = hi.HopTask(100, alphabet, 16)
    model = Construction.of(task, None, algorithm).fused
    for k in range(17):
        assert count_errors(model, task.from_letters(letters(task, 20, k), k)) == 0, k
    mixed = torch.arange(17).repeat(2)
    assert count_errors(model, task.from_letters(letters(task, 34, 99), mixed)) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("max_hops", [1, 2, 3, 6])
def test_small_tasks_in_full(algorithm, max_hops):
    """Every sequence of six letters over three, every k."""
    task = hi.HopTask(6, 3, max_hops)
    words = torch.cartesian_prod(*[torch.arange(3)] * 6)
    every = Construction.of(task, None, algorithm).fused
    for k in range(max_hops + 1):
        batch = task.from_letters(words, k)
        assert count_errors(every, batch) == 0
        if k:
            assert count_errors(Construction.of(task, k, algorithm).fused, batch) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_extreme_sequences(algorithm, task):
    words = [[0] * 98, [0, 1] * 49, [*range(4), *[3] * 94], [2] * 97 + [1]]
    for k in (1, 7, 16):
        assert count_errors(Construction.of(task, k, algorithm).fused, task.from_letters(words, k)) == 0


@pytest.mark.parametrize("k", range(1, 17))
def test_depths(task, k):
    """lookup ⌈log2 k⌉ + 2, successor ⌊log2 k⌋ + 2 (the theorem's bound), sequential k + 1."""
    depth = {algorithm: Construction.of(task, k, algorithm).fused.spec.n_layers for algorithm in ALGORITHMS}
    assert depth == {"lookup": math.ceil(math.log2(k)) + 2, "successor": math.floor(math.log2(k)) + 2, "sequential": k + 1}


def test_multi_task_depths(task):
    assert {a: Construction.of(task, None, a).fused.spec.n_layers for a in ALGORITHMS} == {
        "lookup": 6,
        "successor": 6,
        "sequential": 17,
    }


def test_the_width_does_not_depend_on_the_length():
    for algorithm in ALGORITHMS:
        short, long = (Construction.of(hi.HopTask(n, 4, 16), 11, algorithm).fused.spec for n in (20, 500))
        assert (short.d_model, short.n_heads, short.d_head) == (long.d_model, long.n_heads, long.d_head)
        assert short.attn_only
        assert (short.normalization_type, short.use_attn_scale) == (None, False)
    assert Construction.of(hi.HopTask(), 16, "lookup").fused.spec.n_heads == 1


@pytest.mark.parametrize("k", range(1, 17))
def test_the_printed_recurrence_computes_half_of_the_hops(task, k):
    """Appendix D.1 adds bit ℓ − 1 of k while it looks up find^(2^(ℓ−2)): at its depth ⌊log2 k⌋ + 2 that is hop_⌈k/2⌉."""
    made = compile_program(printed(task, k))
    assert made.model.spec.n_layers == math.floor(math.log2(k)) + 2
    batch = task.sample(30, hops=math.ceil(k / 2), seed=k)
    assert count_errors(made.model, batch) == 0
    if k > 1:
        wanted = batch.with_hops(k)
        assert count_errors(made.model, wanted) > 0.3 * wanted.labels.numel()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hops", [8, 11, None])
def test_margins(algorithm, hops, task):
    made = Construction.of(task, hops, algorithm)
    batch = task.from_letters(letters(task, 20, 0), 11 if hops is None else hops)
    found = margins(made, batch).margin
    assert float(found.min()) > 0.95 * MARGIN
    counting = [isinstance(h.look, SameLetter) for block in made.program.blocks for h in block].count(True)
    unused = sum(made.fused.spec.n_heads - len(block) for block in made.program.blocks)
    assert int(found.isnull().sum()) == counting + unused


def test_margins_see_a_blunt_head(task):
    made = Construction.of(task, 8, "lookup")
    made.fused.parameters["blocks.2.attn.W_Q"].mul_(0.01)
    found = margins(made, task.sample(5, hops=8, seed=0)).margin
    assert float(found.sel(layer=1, head=0)) > 0.95 * MARGIN
    assert float(found.sel(layer=2, head=0)) < 0.02 * MARGIN


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hops", [6, None])
def test_every_subspace_holds_what_its_name_says(algorithm, hops, task):
    """Letters, places and flags in the stream of the last block equal the program's whole numbers."""
    made = Construction.of(task, hops, algorithm)
    batch = task.sample(5, hops=6, seed=1)
    name = f"blocks.{made.fused.spec.n_layers - 1}.hook_resid_post"
    stream = made.fused.run_with_cache(batch.tokens, [name])[1][name]
    state = made.program.run(batch.tokens)[-1]
    places = made.fused.parameters["pos_embed.W_pos"][:, made.subspaces["place"]]
    checked = set()
    for field in made.program.fields:
        seen, value = stream[..., made.subspaces[field.name]], state[field.name]
        if field.kind == "letter":
            wanted = torch.eye(5)[value][..., :4] * (value >= 0)[..., None]
        elif field.kind == "place":
            wanted = places[value]
        elif field.kind == "count":
            wanted = seen.new_tensor([49.5, 198.0]) / (seen.new_tensor([49.5, 198.0]) + value[..., None])
        else:
            wanted = value[..., None].float()
        assert torch.allclose(seen, wanted, atol=2e-3 if field.kind == "count" else 1e-5), field.name
        checked.add(field.kind)
    assert {"letter", "place", "index", "flag"} <= checked
    ends = sorted((place.start, place.stop) for place in made.subspaces.values())
    assert [stop for _, stop in ends[:-1]] == [start for start, _ in ends[1:]]  # they tile the stream and do not overlap
    assert (ends[0][0], ends[-1][1]) == (0, made.fused.spec.d_model)


@pytest.mark.parametrize("k", [1, 5, 8, 16])
def test_the_lookup_blocks_hold_what_the_mpc_machines_hold(task, k):
    """Pair p of the protocol's rounds does what block p + 1 does: find^(2^p), and the answer so far."""
    batch = task.sample(3, hops=k, seed=0)
    machines = mpc_hop(batch)
    made = Construction.of(task, k, "lookup")
    states = made.program.run(batch.tokens)
    compared = 0
    for pair, power in enumerate(machines.pointer_power.values.tolist()):
        block = pair + 1
        pointer = torch.as_tensor(machines.pointer.values[:, pair])
        if f"pointer_{block}" in made.subspaces:
            assert torch.equal(states[block][f"pointer_{block}"][:, 1:], pointer[:, 1:])
            assert power == 2**pair
            compared += 1
    assert compared == made.fused.spec.n_layers - 2
    assert (torch.as_tensor(machines.label.values) == batch.labels)[:, 1:].all()
    assert count_errors(made.fused, batch) == 0


def test_hooked_and_fused_agree(small_task):
    for algorithm in ALGORITHMS:
        hooked = construct(small_task, 3, algorithm=algorithm)
        batch = small_task.sample(10, hops=3, seed=0)
        assert torch.allclose(hooked(batch.tokens), Construction.of(small_task, 3, algorithm).fused(batch.tokens), atol=1e-4)
        assert count_errors(hooked, batch) == 0


def test_a_construction_is_an_ordinary_model_directory(tmp_path, small_task):
    made = Construction.of(small_task, None, "successor")
    store.save(tmp_path / "m", made.fused, small_task, {"how": "by a test"})
    model, task = hi.load(tmp_path / "m")
    assert task == small_task
    assert ModelSpec.from_model(model) == made.fused.spec
    assert count_errors(model, small_task.sample(20, seed=0)) == 0
    found = hi.evaluate(model, task, sequences=20)
    assert float(found.error.max()) == 0
    assert float(found.null_error.max()) == 0


def test_autocast_is_refused(small_task, small_model):
    made = Construction.of(small_task, 2, "lookup")
    batch = small_task.sample(2, hops=2, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(HopInterpError, match="autocast would round the scores"):
            made.fused(batch.tokens)
        assert small_model(batch.tokens).isfinite().all()
    assert count_errors(made.fused, batch) == 0


@pytest.mark.parametrize(
    ("hops", "algorithm", "words"),
    [
        (0, "lookup", "hop_0 is the identity, which needs no circuit"),
        (17, "lookup", "hops is 17; this task has 0 to 16"),
        (-1, "sequential", "hops is -1"),
        (4, "magic", "no algorithm 'magic'; there are lookup, successor, sequential"),
    ],
)
def test_what_cannot_be_built_is_named(task, hops, algorithm, words):
    with pytest.raises(HopInterpError, match=words):
        construct(task, hops, algorithm=algorithm)


def test_other_ks_have_no_causal_model(task):
    with pytest.raises(HopInterpError, match="computes hop_8 whatever it is asked; hops is 7"):
        Construction.of(task, 8).asked(7)
    with pytest.raises(HopInterpError, match=r"a causal model for each k: asked\(k\)"):
        _ = Construction.of(task).causal
    assert Construction.of(task, 8).causal == Construction.of(task, 8).asked(8)


# -- the causal models, against the definitions ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 8, 16])
def test_the_light_cone_of_lookup_at_powers_of_two(task, k):
    """resid_post of block ℓ ≥ 1 at chain position j matters iff j < k and 2^(ℓ−1) divides j."""
    causal = Construction.of(task, k, "lookup").causal
    for layer in range(1, causal.n_layers):
        assert causal.light_cone(layer) == {j for j in range(k) if j % 2 ** (layer - 1) == 0}
    assert causal.light_cone(0) == set(range(k + 1))
    assert causal.light_cone(-1, -1) == set(range(1, k + 1))  # the links' keys, before block 0 moves them


@pytest.mark.parametrize("k", range(4, 17))
def test_held_sets(task, k):
    sequential = Construction.of(task, k, "sequential").causal
    assert all(sequential.held(layer) == set(range(layer + 1)) for layer in range(k + 1))
    successor = Construction.of(task, k, "successor").causal
    lookup = Construction.of(task, k, "lookup").causal
    for layer in range(1, successor.n_layers - 1):
        pointers = {0} | {2**block - 1 for block in range(1, layer + 1)}
        assert successor.held(layer) == pointers | {k % 2**block for block in range(1, layer + 1)}
    assert successor.held(successor.n_layers - 1) >= {k}
    for layer in range(1, lookup.n_layers - 1):
        answers = {1 + (k - 1) % 2 ** (block - 1) for block in range(1, layer + 1)}
        assert lookup.held(layer) == {0} | {2 ** (block - 1) for block in range(1, layer + 1)} | answers


def test_attended(task):
    lookup, successor = (Construction.of(task, 8, a).causal for a in ("lookup", "successor"))
    assert [lookup.attends(layer)[0] for layer in range(5)] == [
        Target("previous"),
        *[Target("find", j) for j in (1, 1, 2, 4)],
    ]
    assert [successor.attends(layer)[0] for layer in range(5)] == [
        Target("previous"),
        *[Target("find", j) for j in (1, 2, 4, 8)],
    ]
    closed = Construction.of(task, None, "lookup").asked(5)  # k − 1 = 100 in binary
    assert closed.attends(2) == (Target("find", 1), Target("first"), Target("itself"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("hops", [5, None])
def test_transplants_are_predicted_exactly(algorithm, hops):
    """The model's own answers with one position's stream replaced, one position at a time, against the causal model."""
    task = hi.HopTask(20, 4, 5)
    made = Construction.of(task, hops, algorithm)
    causal = made.asked(5)
    base, source = task.sample(4, hops=5, seed=0), task.sample(4, hops=5, seed=1)
    model = made.fused.spec.build(made.fused.parameters)
    for layer in range(causal.n_layers):
        name = f"blocks.{layer}.hook_resid_post"
        predicted = causal.transplanted(layer, base, source)
        theirs = model.run_with_cache(source.tokens, names_filter=name)[1][name]
        for i in (5, 12, 20):

            def put(stream, hook, i=i, theirs=theirs):  # noqa: ARG001
                stream[:, i] = theirs[:, i]
                return stream

            got = model.run_with_hooks(base.tokens, fwd_hooks=[(name, put)])[:, i].argmax(-1)
            assert torch.equal(got, predicted[:, i]), (layer, i)


def test_what_a_block_stands_for(task):
    lookup, successor, sequential = (Construction.of(task, 8, a).causal for a in ALGORITHMS)
    assert [lookup.stands_for(layer) for layer in range(5)] == [
        ("content", 0), ("pointer", 1), ("pointer", 2), ("pointer", 4), ("content", 8),
    ]  # fmt: skip
    assert [successor.stands_for(layer) for layer in range(5)] == [
        ("content", 0), ("occurrence", 1), ("occurrence", 3), ("occurrence", 7), ("content", 8),
    ]  # fmt: skip
    assert [sequential.stands_for(layer) for layer in range(9)] == [
        ("content", 0), *[("pointer", r) for r in range(1, 8)], ("content", 8),
    ]  # fmt: skip
    early = Construction.of(task, None, "lookup").asked(2)
    assert early.stands_for(2) == ("content", 2)  # its pointers run on, but the answer is there


# -- the language ------------------------------------------------------------------------------------------------------


def test_programs_check_themselves(task):
    with pytest.raises(ValueError, match="do not go together"):
        Head(Last(), (Move(SYMBOL, PREVIOUS_LETTER),))
    with pytest.raises(ValueError, match="cannot be copied into"):
        Head(SameLetter(0), (Move(SYMBOL, Construction.of(task, 4).program.blocks[1][0].moves[0].target),))
    with pytest.raises(HopInterpError, match="at least one block"):
        Program(task, (), SYMBOL)


def test_a_gradient_reaches_every_block(small_task):
    """They are ordinary parameters: a gradient reaches every matrix that a program uses."""
    made = Construction.of(small_task, 2, "lookup")
    hooked = made.fused.spec.build(made.fused.parameters)
    hooked(small_task.sample(2, hops=2, seed=0).tokens).square().sum().backward()
    assert all(hooked.blocks[layer].attn.W_V.grad.abs().sum() > 0 for layer in range(3))
