"""A program of heads compiled to the weights of an attention-only transformer without layer norms.

Each field gets a subspace of its own; a head's scores are a sum of bilinear terms between fields of the query and of the
key, sharp enough that the softmax is one-hot to float32. d_model depends on the program and |Σ|, not on the length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.shown import Row, Shown
from hopinterp.task import HopTask
from hopinterp.theory.program import (
    BEFORE_COUNT,
    BEFORE_LETTER,
    COUNT,
    INDEX,
    PLACE,
    PREVIOUS_LETTER,
    START,
    SYMBOL,
    After,
    At,
    Before,
    Field,
    First,
    Gate,
    Head,
    Itself,
    Last,
    Previous,
    Program,
    SameLetter,
)

MARGIN = 40.0
"""Nats between the score of the position a head looks at and any other: e^−40 vanishes beside 1 in float32."""
LOGIT = 20.0
"""What each field that brings a letter adds to that letter's logit; null has half of it less than a quorum adds up to."""
Subspaces = Mapping[str, slice]


@dataclass(frozen=True)
class Term:
    """One part of a head's scores: (Σ_f query_f x_f + query_bias) · (Σ_f key_f y_f + key_bias), x and y the fields at query
    and key. All matrices are [field size, width of the term]; float64 until they are cast."""

    query: Mapping[Field, Float[Tensor, "_size _width"]]
    key: Mapping[Field, Float[Tensor, "_size _width"]]
    query_bias: Float[Tensor, " width"] | None = None
    key_bias: Float[Tensor, " width"] | None = None

    @property
    def width(self) -> int:
        """How many of the head's dimensions the term takes."""
        return next(iter(self.key.values())).shape[1]


@dataclass(frozen=True)
class Geometry:
    """How the fields of one task are written as vectors.

    A place is a point on two circles: turns of 1 and of about √n in n positions. Neighbours on the first circle are hard to
    tell apart (the cosine of the angle between them differs from 1 by 2π²/n²); with the second the least gap is near 2π²/n.
    A count m is a pair b/(b + m): what a head that looks evenly at m equal letters and with weight b at the hop token
    can write. Two different b make every quadratic in m, over (b + m)(b′ + m), linear in the pair.
    """

    task: HopTask

    @cached_property
    def turns(self) -> Float[Tensor, " circle"]:
        """Angles a position, in radians."""
        n = self.task.n_positions
        return 2 * math.pi / n * torch.tensor([1.0, max(2.0, round(math.sqrt(n)))], dtype=torch.float64)

    @cached_property
    def places(self) -> Float[Tensor, "position axis"]:
        """The place field of every position."""
        angle = torch.arange(self.task.n_positions, dtype=torch.float64)[:, None] * self.turns
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    @cached_property
    def place_scale(self) -> float:
        """What two places' inner product is multiplied by, so that equal beats different by MARGIN."""
        products = self.places @ self.places[0]
        return MARGIN / float(products[0] - products[1:].max())

    @cached_property
    def rotate_back(self) -> Float[Tensor, "axis axis"]:
        """The matrix that turns the place of i (a row) into that of i − 1."""
        cos, sin = torch.diag(self.turns.cos()), torch.diag(self.turns.sin())
        return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])

    @cached_property
    def weights(self) -> Float[Tensor, " which"]:
        """b of the two counting heads, near n/2 and 2n; their logarithms are multiples of 1/256, exact in float32 scores."""
        wanted = torch.tensor([0.5, 2.0], dtype=torch.float64) * self.task.n_positions
        return ((wanted.log() * 256).round() / 256).exp()

    def counts(self, m: Float[Tensor, " count"]) -> Float[Tensor, "count which"]:
        """The count field of each m."""
        return self.weights / (self.weights + m[:, None])

    @cached_property
    def quadratic(self) -> tuple[Float[Tensor, "two three"], Float[Tensor, " three"]]:
        """Matrix and constant that give (1, t, t²)/Q from a count field, with t = m − n/2 and Q = (b + m)(b′ + m)."""
        m = torch.tensor([1.0, self.task.n_letters / 2 + 1, self.task.n_letters + 1], dtype=torch.float64)
        features = torch.cat([self.counts(m), torch.ones(3, 1, dtype=torch.float64)], dim=1)
        found = torch.linalg.solve(features, self._powers(m) / self._q(m)[:, None])  # exact at three counts, hence at all
        return found[:2], found[2]

    @cached_property
    def fallback(self) -> tuple[Float[Tensor, " three"], float, float]:
        """Where the hop token stands among the penalties scale·(t_key + 1 − t)²/(Q_key Q) of a query with count t.

        A polynomial g of degree 2 near ½/Q: the hop token pays scale·g/Q, half of what a key pays whose count is off by one.

        Returns:
            g as coefficients of (1, t, t²); the scale, so that both halves are at least MARGIN; and the most it pays.
        """
        m = torch.arange(self.task.n_letters + 1, dtype=torch.float64)
        powers, q = self._powers(m), self._q(m)
        g = torch.linalg.lstsq(powers * q[:, None], torch.full((len(m), 1), 0.5, dtype=torch.float64)).solution[:, 0]
        pays = (powers @ g) / q
        # the cheapest key that is off by one has a count of one more, hence the query's own count
        scale = MARGIN / float(torch.minimum(pays, 1 / q.square() - pays).min())
        return g, scale, scale * float(pays.max())

    def _powers(self, m: Float[Tensor, " count"]) -> Float[Tensor, "count three"]:
        t = m - self.task.n_letters / 2
        return torch.stack([torch.ones_like(t), t, t.square()], dim=1)

    def _q(self, m: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
        return (self.weights + m[:, None]).prod(1)

    def size(self, kind: str) -> int:
        """Dimensions of a field."""
        return {"letter": self.task.alphabet_size, "place": 2 * len(self.turns), "count": 2}.get(kind, 1)

    # -- scores ---------------------------------------------------------------------------------------------------

    def terms(self, head: Head) -> list[Term]:
        """What a head's scores are the sum of."""
        n, letters = self.task.n_letters, torch.eye(self.task.alphabet_size, dtype=torch.float64)
        places = torch.eye(self.places.shape[1], dtype=torch.float64) * self.place_scale
        spread = 4 * self.place_scale  # the most by which the look itself can score the hop token below another
        match head.look:
            case Previous():
                found = [Term({PLACE: self.rotate_back * self.place_scale}, {PLACE: places / self.place_scale})]
            case At(pointer):
                found = [Term({pointer: places}, {PLACE: places / self.place_scale})]
            case First():
                found = [_bonus(2 * MARGIN)]
            case Itself():
                found, spread = [_recency()], MARGIN * n
            case Last():
                # any match beats the hop token, which beats the most recent position without a match
                found = [_recency(), Term({SYMBOL: letters * MARGIN * (n + 2)}, {PREVIOUS_LETTER: letters})]
                found.append(_bonus(MARGIN * (n + 1)))
                spread = MARGIN * (n + 1)
            case SameLetter(which):
                found = [Term({SYMBOL: letters * 128}, {SYMBOL: letters}), _bonus(128 + math.log(self.weights[which]))]
            case After(letter, count):
                found, spread = self._after(letter, count, BEFORE_LETTER, BEFORE_COUNT)
            case Before(letter, count):
                found, spread = self._after(letter, count, SYMBOL, COUNT)
        return found if head.gate is None else [*found, _gate(head.gate, spread + 2 * MARGIN)]

    def _after(self, letter: Field, count: Field, key_letter: Field, key_count: Field) -> tuple[list[Term], float]:
        """The letter must agree, and the key's count be one less: a letter off, or a count, costs more than the hop token
        pays, so that it wins where nothing agrees."""
        matrix, constant = self.quadratic
        g, scale, most = self.fallback
        # (t_key + 1 − t)² = t_key² + 2 t_key (1 − t) + (1 − t)², as rows (1, t, t²) of the query by columns of the key
        form = torch.tensor([[1.0, 2.0, 1.0], [-2.0, -2.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
        own = self.counts(torch.zeros(1, dtype=torch.float64)) @ matrix + constant  # the hop token's own count, taken out
        start = torch.linalg.solve(form, g) - own
        penalty = Term(
            {count: -scale * matrix @ form},
            {key_count: matrix, START: start},
            -scale * constant @ form,
            constant,
        )
        bonus = 2 * most + MARGIN
        letters = torch.eye(self.task.alphabet_size, dtype=torch.float64)
        return [penalty, Term({letter: letters * bonus}, {key_letter: letters}), _bonus(bonus)], bonus


def _bonus(score: float) -> Term:
    """A score for the hop token."""
    return Term({}, {START: torch.ones(1, 1, dtype=torch.float64)}, torch.tensor([score], dtype=torch.float64))


def _recency() -> Term:
    """MARGIN a position."""
    return Term({}, {INDEX: torch.ones(1, 1, dtype=torch.float64)}, torch.tensor([MARGIN], dtype=torch.float64))


def _gate(gate: Gate, score: float) -> Term:
    """A score for the hop token where the gate is closed."""
    slope, bias = (-score, score) if gate.value else (score, 0.0)
    query = {gate.flag: torch.tensor([[slope]], dtype=torch.float64)}
    return Term(query, {START: torch.ones(1, 1, dtype=torch.float64)}, torch.tensor([bias], dtype=torch.float64))


# -- weights -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Compiled(Shown):
    """A program, where its fields lie in the residual stream, and the model that runs it."""

    program: Program
    subspaces: Subspaces
    model: FusedTransformer

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["field", "coordinates"]

    @property
    def rows(self) -> list[Row]:
        """Where each field lies in the residual stream."""
        return [(name, (f"{where.start} … {where.stop - 1}",)) for name, where in self.subspaces.items()]

    @property
    def reading(self) -> str:
        """The size of the model."""
        return f"A program as weights: {self.model.reading}"


@dataclass
class _Weights:
    """One head's matrices while they are filled, float64."""

    d_model: int
    d_head: int
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("W_Q", "W_K", "W_V"), (self.d_model, self.d_head))
        shapes |= {"W_O": (self.d_head, self.d_model), "b_Q": (self.d_head,), "b_K": (self.d_head,), "b_V": (self.d_head,)}
        self.parts |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def compile_program(program: Program) -> Compiled:
    """The weights that run a program: no layer norm, no score scaling, attention only, float32."""
    geometry = Geometry(program.task)
    subspaces = _lay_out(program, geometry)
    terms = [[geometry.terms(head) for head in block] for block in program.blocks]
    d_model = max(place.stop for place in subspaces.values())
    widths = [sum(term.width for term in head) for block in terms for head in block]
    values = [sum(geometry.size(f.kind) for f in Program.written(head)) for block in program.blocks for head in block]
    spec = ModelSpec.for_task(
        program.task,
        len(program.blocks),
        d_model=d_model,
        n_heads=max(map(len, program.blocks)),
        d_head=max(*widths, *values, 1),
        n_ctx=program.task.n_positions,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=False,
    )
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in spec.parameter_shapes().items()}
    _embed(parameters, program, geometry, subspaces)
    for layer, (block, block_terms) in enumerate(zip(program.blocks, terms, strict=True)):
        idle = [(Head(First()), geometry.terms(Head(First())))] * (spec.n_heads - len(block))
        for index, (head, head_terms) in enumerate([*zip(block, block_terms, strict=True), *idle]):
            assert spec.d_head is not None
            weights = _Weights(d_model, spec.d_head)
            _score(weights, head_terms, subspaces)
            _move(weights, head, subspaces)
            for name, value in weights.parts.items():
                parameters[f"blocks.{layer}.attn.{name}"][index] = value
    cast = {name: value.float() for name, value in parameters.items()}
    return Compiled(program, subspaces, FusedTransformer(spec, cast))


def _lay_out(program: Program, geometry: Geometry) -> dict[str, slice]:
    subspaces, end = {}, 0
    for one in program.fields:
        subspaces[one.name] = slice(end, end + geometry.size(one.kind))
        end += geometry.size(one.kind)
    return subspaces


def _embed(parameters: dict[str, Tensor], program: Program, geometry: Geometry, subspaces: Subspaces) -> None:
    task = program.task
    letters = slice(task.first_letter, task.first_letter + task.alphabet_size)
    eye = torch.eye(task.alphabet_size, dtype=torch.float64)
    embedding, positions = parameters["embed.W_E"], parameters["pos_embed.W_pos"]
    embedding[letters, subspaces[SYMBOL.name]] = eye
    embedding[: task.first_letter, subspaces[START.name]] = 1
    for one in program.fields:
        if one.asked:
            embedding[: task.first_letter, subspaces[one.name]] = torch.tensor(one.asked, dtype=torch.float64)[:, None]
    positions[:, subspaces[PLACE.name]] = geometry.places
    positions[:, subspaces[INDEX.name]] = torch.arange(task.n_positions, dtype=torch.float64)[:, None]
    for vote in program.votes:
        parameters["unembed.W_U"][subspaces[vote.name], letters] = LOGIT * eye
    for flag in program.abstains:
        parameters["unembed.W_U"][subspaces[flag.name], letters] = LOGIT
    parameters["unembed.b_U"][task.null] = LOGIT * (program.quorum - 0.5)


def _score(weights: _Weights, terms: list[Term], subspaces: Subspaces) -> None:
    start = 0
    for term in terms:
        width = slice(start, start + term.width)
        for side, fields, bias in (("Q", term.query, term.query_bias), ("K", term.key, term.key_bias)):
            for one, matrix in fields.items():
                weights.parts[f"W_{side}"][subspaces[one.name], width] += matrix
            if bias is not None:
                weights.parts[f"b_{side}"][width] += bias
        start += term.width


def _move(weights: _Weights, head: Head, subspaces: Subspaces) -> None:
    if isinstance(head.look, SameLetter):
        # the share of the hop token, b/(b + m), read off its mark
        weights.parts["W_V"][subspaces[START.name].start, 0] = 1
        weights.parts["W_O"][0, subspaces[COUNT.name].start + head.look.which] = 1
        return
    start = 0
    for move in head.moves:
        source, target = subspaces[move.source.name], subspaces[move.target.name]
        size = source.stop - source.start
        eye = torch.eye(size, dtype=torch.float64)
        weights.parts["W_V"][source, start : start + size] = eye
        weights.parts["W_O"][start : start + size, target] = eye
        start += size
