"""Many linear readouts of the same rows, solved at once, by ridge or logistic regression. Knows no model and no task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_HISTORY = 10  # pairs that L-BFGS remembers; 20 saved no evaluations
_ARMIJO = 1e-4
_CHUNK_ROWS = 1024  # with 129 features and 68 outputs, a chunk stays in a core's second-level cache


@dataclass(frozen=True)
class Standardizer:
    """Features shifted by their mean and divided by one common scale, the root mean square over all of them."""

    mean: Float[Tensor, " feature"]
    scale: Float[Tensor, ""]

    @classmethod
    def fit(cls, rows: Float[Tensor, "row feature"]) -> Standardizer:
        """Mean and scale of training rows. One scale for all, so that directions keep their relative size."""
        mean = rows.mean(0)
        return cls(mean, (rows - mean).square().mean().sqrt().clamp_min(1e-12))

    def __call__(self, rows: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature_and_one"]:
        """Standardised features and a last column of ones for the intercept."""
        return torch.cat([(rows - self.mean) / self.scale, rows.new_ones(len(rows), 1)], dim=1)


def fit_ridge(
    rows: Float[Tensor, "row feature_and_one"],
    targets: Float[Tensor, "row problem output"],
    valid: Bool[Tensor, "row problem"],
    penalty: float = 1.0,
) -> Float[Tensor, "problem feature_and_one output"]:
    """Ridge regressions that share their rows, in closed form: (XᵀX + penalty·I) W = XᵀY over each problem's valid rows.

    Rows with the same set of valid problems share one Gram matrix. Where the sets are nested (a row valid for hop j is
    valid for hop j − 1) there are no more such groups than problems, so all Gram matrices cost one pass over the rows.
    """
    d = rows.shape[1]
    patterns, group = valid.unique(dim=0, return_inverse=True)
    order = group.argsort()
    parts = rows[order].split(group.bincount(minlength=len(patterns)).tolist())
    grams = torch.stack([part.T @ part for part in parts])
    grams = torch.einsum("gp,gde->pde", patterns.to(rows.dtype), grams)
    ridge = torch.full((d,), penalty, device=rows.device)
    ridge[-1] = 1e-3
    moments = (rows.T @ (targets * valid[..., None]).flatten(1)).unflatten(1, targets.shape[1:]).transpose(0, 1)
    return torch.cholesky_solve(moments, torch.linalg.cholesky(grams + torch.diag(ridge)))


def fit_logistic(
    rows: Float[Tensor, "row feature_and_one"],
    targets: Int[Tensor, "row problem"],
    valid: Bool[Tensor, "row problem"],
    n_classes: int,
    penalty: float = 1.0,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Float[Tensor, "problem feature_and_one class"]:
    """Multinomial logistic regressions that share their rows and differ in targets, by preconditioned L-BFGS.

    Minimises, a problem, Σ_valid rows −log softmax(xW)_target + penalty/2·‖W without intercept‖², which is scikit-learn's
    LogisticRegression with C = 1/penalty. Coordinates are whitened by the Cholesky factor of the rows' Gram matrix: the
    Hessian is at most half of it (Böhning 1992), so unit steps are safe from the start. A problem leaves the batch when
    the decrease that its quadratic model predicts falls under `tolerance` nats a row.

    Args:
        rows: features, the last column ones (Standardizer gives it).
        targets: class numbers; anything where not valid.
        valid: which rows count for which problem.
    """
    d = rows.shape[1]
    ridge = torch.full((d,), penalty, device=rows.device)
    ridge[-1] = 0.0
    factor = torch.linalg.cholesky(rows.T @ rows + torch.diag(ridge.clamp_min(1e-3)))
    whitened = torch.linalg.solve_triangular(factor, rows.T, upper=False).T.contiguous()
    inverse = torch.linalg.solve_triangular(factor, torch.eye(d, device=rows.device), upper=False)
    objective = _Objective.of(whitened, targets, valid, n_classes, inverse @ torch.diag(ridge) @ inverse.T)
    del whitened
    solution = _lbfgs(objective, tolerance, max_iterations)
    return torch.einsum("dw,wcp->pdc", inverse.T, solution)


@dataclass(frozen=True)
class _Chunk:
    """Rows few enough for the cache, with the problems for which any of them counts."""

    rows: Float[Tensor, "row feature"]
    one_hot: Float[Tensor, "row class problem"]
    valid: Float[Tensor, "row problem"]
    problems: Int[Tensor, " problem"]

    def restrict(self, keep: Bool[Tensor, " all_problems"]) -> _Chunk:
        """The same for some of all problems, which are renumbered."""
        mine = keep[self.problems]
        renumbered = keep.cumsum(0)[self.problems[mine]] - 1
        return _Chunk(self.rows, self.one_hot[..., mine].contiguous(), self.valid[:, mine].contiguous(), renumbered)

    def loss_and_residual(
        self, weights: Float[Tensor, "feature class problem"]
    ) -> tuple[Float[Tensor, " problem"], Float[Tensor, "feature class problem"]]:
        """Σ −log p(target), and Σ x·(p − [target]), over these rows."""
        logits = (self.rows @ weights.flatten(1)).view(self.one_hot.shape)
        logits -= logits.amax(1, keepdim=True)
        loss = -torch.linalg.vecdot(logits, self.one_hot, dim=1)
        probability = logits.exp_()
        total = probability.sum(1)
        probability *= (self.valid / total)[:, None]
        probability -= self.one_hot
        loss += total.log_() * self.valid
        return loss.sum(0), (self.rows.T @ probability.flatten(1)).view(weights.shape)


class _Objective:
    """Penalised negative log likelihood of a set of problems, and its gradient, at weights [feature, class, problem]."""

    def __init__(self, chunks: list[_Chunk], penalty: Float[Tensor, "feature feature"], shape: tuple[int, int, int]) -> None:
        self.chunks = [chunk for chunk in chunks if len(chunk.problems)]
        self.penalty, self.shape = penalty, shape
        self.n_rows = sum(len(chunk.rows) for chunk in chunks)

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "row feature"],
        targets: Int[Tensor, "row problem"],
        valid: Bool[Tensor, "row problem"],
        n_classes: int,
        penalty: Float[Tensor, "feature feature"],
    ) -> _Objective:
        """Rows that count for many problems come first, so that the last chunks skip the problems they do not serve."""
        order = valid.sum(1).argsort(descending=True, stable=True)
        classes = torch.arange(n_classes, device=rows.device)[:, None]
        chunks = []
        for few in order.split(_CHUNK_ROWS):  # no second copy of all rows: there may be a million
            x, y, v = rows[few], targets[few], valid[few]
            problems = v.any(0).nonzero()[:, 0]
            counts = v[:, problems].to(x.dtype)
            chunks.append(_Chunk(x, (y[:, None, problems] == classes) * counts[:, None], counts, problems))
        return cls(chunks, penalty, (rows.shape[1], n_classes, targets.shape[1]))

    def restrict(self, keep: Bool[Tensor, " problem"]) -> _Objective:
        """The same for some of the problems."""
        return _Objective([chunk.restrict(keep) for chunk in self.chunks], self.penalty, (*self.shape[:2], int(keep.sum())))

    def __call__(
        self, weights: Float[Tensor, "feature class problem"]
    ) -> tuple[Float[Tensor, " problem"], Float[Tensor, "feature class problem"]]:
        gradient = (self.penalty @ weights.flatten(1)).view(self.shape)
        value = 0.5 * (weights * gradient).sum((0, 1))
        for chunk in self.chunks:
            loss, residual = chunk.loss_and_residual(weights[..., chunk.problems])
            value.index_add_(0, chunk.problems, loss)
            gradient.index_add_(2, chunk.problems, residual)
        return value, gradient


def _lbfgs(objective: _Objective, tolerance: float, max_iterations: int) -> Float[Tensor, "feature class problem"]:
    """Minimise every problem of an objective. Problems share nothing but the products; each has its own step and end."""
    weights = torch.zeros(objective.shape, device=objective.penalty.device)
    solution = weights.clone()
    problems = torch.arange(weights.shape[-1], device=weights.device)
    value, gradient = objective(weights)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    enough = tolerance * objective.n_rows
    stuck = last_failed = torch.zeros_like(problems, dtype=torch.bool)
    gained = torch.full_like(value, torch.inf)
    for _ in range(max_iterations):
        direction = _two_loop(gradient, steps, changes)
        slope = (direction * gradient).sum((0, 1))
        going = ((-slope / 2 > enough) | (gained > 3 * enough) | last_failed) & ~stuck
        if not going.all():
            solution[..., problems] = weights
            if not going.any():
                return solution
            objective, problems, steps, changes = (
                objective.restrict(going),
                problems[going],
                [s[..., going] for s in steps],
                [c[..., going] for c in changes],
            )
            weights, value, gradient, direction, slope = (
                x[..., going] for x in (weights, value, gradient, direction, slope)
            )
        step, new_value, new_gradient, failed = _line_search(objective, weights, value, gradient, direction, slope)
        # no step along this direction: forget the history, and end where even the gradient's direction gives none
        stuck, last_failed = failed & last_failed[going], failed
        steps, changes = ([x * ~failed for x in xs] for xs in (steps, changes))
        steps, changes = [*steps, step][-_HISTORY:], [*changes, new_gradient - gradient][-_HISTORY:]
        gained = value - new_value
        weights, value, gradient = weights + step, new_value, new_gradient
    solution[..., problems] = weights
    return solution


def _two_loop(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """−H·gradient with L-BFGS's H (Nocedal and Wright 2006, algorithm 7.4), a problem apart from the others."""
    direction = -gradient
    curvatures = [(s * y).sum((0, 1)) for s, y in zip(steps, changes, strict=True)]
    inverse = [torch.where(c > 0, 1 / c, 0.0) for c in curvatures]
    alphas = []
    for s, y, rho in zip(reversed(steps), reversed(changes), reversed(inverse), strict=True):
        alphas.append(rho * (s * direction).sum((0, 1)))
        direction = direction - alphas[-1] * y
    scale: Tensor | float = 2.0
    if steps:
        scale = torch.where(curvatures[-1] > 0, curvatures[-1] / changes[-1].square().sum((0, 1)), 2.0)
    direction = direction * scale
    for s, y, rho, alpha in zip(steps, changes, inverse, reversed(alphas), strict=True):
        direction = direction + s * (alpha - rho * (y * direction).sum((0, 1)))
    return direction


def _line_search(
    objective: _Objective, weights: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " problem"]]:
    """Each problem's step, halved until it decreases enough (Armijo), with the value and gradient there.

    A problem that six halvings do not help is at the end of what float32 can tell: it stays where it is, marked.
    """
    step = direction
    new_value, new_gradient = objective(weights + step)
    shrink = torch.ones_like(value)
    for _ in range(6):
        failed = ~(new_value <= value + _ARMIJO * shrink * slope)
        if not failed.any():
            break
        shrink = torch.where(failed, shrink / 2, shrink)
        step = shrink * direction
        new_value[failed], new_gradient[..., failed] = objective.restrict(failed)((weights + step)[..., failed])
    failed = ~(new_value <= value + _ARMIJO * shrink * slope)
    step = torch.where(failed, 0.0, step)
    return step, torch.where(failed, value, new_value), torch.where(failed, gradient, new_gradient), failed
