"""What a loop does near its fixed point, measured, and what can be certified of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcbl.arguments import check_loop
from torchcbl.backbone.calls import Call
from torchcbl.checks import check_count
from torchcbl.halting import Never, Tolerance
from torchcbl.refinement import Status
from torchcbl.solvers import Anderson, FunctionMap, Newton, Picard, Solver, iterate
from torchcbl.solvers.iteration import Trace
from torchcbl.theory.certificate import Certifier
from torchcbl.theory.rates import Recommendation, damped_rate, geometric_rate, recommend
from torchcbl.theory.reach import NoBoundError
from torchcbl.theory.space import Space, opened
from torchcbl.theory.spectra import spectrum

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


@dataclass(frozen=True, eq=False)
class Contraction:
    """What `contraction(net, x)` found; one number per sample unless said otherwise.

    Three numbers of the undamped map F, h_{t+1} = alpha h_t + (1 - alpha) F(h_t), in the 2-norm of one sample:

    Args:
        spectral_norm: ||dF/ds|| at the fixed point, (B,): a lower bound on gamma there, no certificate.
        spectral_radius: Largest |eigenvalue| of dF/ds there, (B,): below 1 the loop returns to the fixed point from
            nearby, if it is not damped. Neither a bound on gamma nor on the error.
        certified: An upper bound on gamma for all states, (B,), from the norms of the layers; None where there is none.
        reason: Why there is none; empty otherwise.
        eigenvalues: Of dF/ds, (B, N) complex; where not `exact`, the outermost that were found, (B, k).
        asymptotic_rate: Spectral radius of the loop's own step there, (B,), max_i |alpha + (1 - alpha) lambda_i| where
            the loop is Eq. 11's: what its steps shrink by in the end.
        exact: Whether the whole Jacobian was computed, or products with it.
        alpha: Weight of the OLD state, the damping of a `Picard` solver included.
        space: What the state s is: "y", "z" or "h".
        size: N, its size.
        status: Whether the fixed point was found, (B,), by `Status`; where it was not, norms, radii, eigenvalues and
            the asymptotic rate are NaN.
        fixed_point: That point, (B, N).
        lengths: ||s_{t+1} - s_t|| of the loop as it runs, (K, B); where that is not Eq. 11's iteration (`reason` says
            so), s has y or z besides the hidden states here and in `errors`.
        errors: ||s_{t+1} - s*||, (K, B).
    """

    spectral_norm: Tensor
    spectral_radius: Tensor
    certified: Tensor | None
    reason: str
    eigenvalues: Tensor
    asymptotic_rate: Tensor
    exact: bool
    alpha: float
    space: str
    size: int
    status: Tensor
    fixed_point: Tensor
    lengths: Tensor
    errors: Tensor

    @property
    def rate(self) -> Tensor:
        """alpha + (1 - alpha) gamma (Theorem 3.1), with the spectral norm for gamma, (B,): what the steps are predicted
        to shrink by, at least; the theorem's own rate is no less than this.
        """
        return self.alpha + (1.0 - self.alpha) * self.spectral_norm

    @property
    def certified_rate(self) -> Tensor | None:
        """alpha + (1 - alpha) gamma with the certified bound for gamma, (B,): each step's length is at most this times
        that of the one before. None without.
        """
        return None if self.certified is None else self.alpha + (1.0 - self.alpha) * self.certified

    @property
    def measured_rate(self) -> Tensor:
        """What the last steps shrank by above rounding, (B,): the geometric mean of ratios of lengths; NaN without."""
        return geometric_rate(self.lengths, self.fixed_point)

    def error_bound(self) -> Tensor | None:
        """Bound the errors a posteriori, from the last step alone.

            ||s_{t+1} - s*|| <= q / (1 - q) ||s_{t+1} - s_t||,    q = certified_rate

        Returns:
            (K, B), infinite where q >= 1; None where nothing is certified.
        """
        return None if self.certified_rate is None else posterior_bound(self.lengths, self.certified_rate)

    def recommend(self, tolerance: float = 1e-4) -> Recommendation:
        """Say which alpha, and how many steps, take the relative residual of every sample below a tolerance.

        Args:
            tolerance: The relative residual, above 0.

        Raises:
            ValueError: It is not above 0.
        """
        return recommend(self, tolerance)

    def __str__(self) -> str:
        kind = "whole Jacobian" if self.exact else "Lanczos and Arnoldi"
        found = int((self.status == Status.converged).sum())
        lines = [
            f"Contraction(state {self.space}, N = {self.size}, {kind}; fixed point found for {found} of "
            f"{len(self.status)} samples)",
            _row("spectral norm at the fixed point (lower bound on gamma)", self.spectral_norm),
            _row("spectral radius there", self.spectral_radius),
            f"  certified bound on gamma: none, {self.reason}"
            if self.certified is None
            else _row("certified bound on gamma", self.certified),
            _row(f"rate alpha + (1 - alpha) gamma, alpha = {self.alpha:g}", self.rate),
            _row("asymptotic rate", self.asymptotic_rate),
            _row("measured rate", self.measured_rate),
        ]
        return "\n".join(lines)

    __repr__ = __str__


def posterior_bound(lengths: Tensor, rate: Tensor) -> Tensor:
    """Return q / (1 - q) times the last step's length, (K, B), infinite where q >= 1.

    The length may be that of any evaluation, ||G(s) - s||, whatever solver chose s; the bound is G(s)'s error then.

    Args:
        lengths: (K, B) or (B,), as `Refinement.path.moved`.
        rate: q, (B,), an upper bound of G's Lipschitz constant.
    """
    factor = torch.where(rate < 1, rate / (1 - rate).clamp(min=torch.finfo(rate.dtype).tiny), torch.inf)
    return torch.where(lengths == 0, 0.0, factor.to(lengths) * lengths)


def contraction(
    net: ContextLoop, *args: object, steps: int = 100, exact_up_to: int = 256, iterations: int = 30, **kwargs: object
) -> Contraction:
    """Measure whether a loop contracts at the fixed points of a batch, and certify that it does where it can be known.

    The loop is run in eval mode from its own start, its last iterate is taken to the fixed point by Newton's or
    Anderson's method, and F is linearised there. With batch norm per step, F is the map of step T and all later ones.

    Args:
        net: The loop.
        *args: What it is called with.
        steps: How many steps to run, at least 1.
        exact_up_to: The largest N for which whole Jacobians are computed; beyond it, Krylov methods.
        iterations: Products with the Jacobian for those, at least 1.
        **kwargs: What it is called with by keyword.

    Returns:
        `Contraction`: per sample the spectral norm, the spectral radius, the certified bound, and the rates.

    Raises:
        ValueError: A number is out of its range.
        TypeError: It is no whole number, or `net` is no loop.

    Source:
        Theorem 3.1 of the paper. That a Jacobian's norm at a point bounds gamma from below, and its spectral radius
        is the rate of convergence there: Ortega and Rheinboldt 1970, section 10.1.

    Example:
        >>> from torch import nn
        >>> from torchcbl import Context, ContextLoop
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(5, 4)
        >>> net = ContextLoop(backbone, "1", x, adapter="additive")
        >>> report = contraction(net, x)  # an identity start feeds nothing back
        >>> report.spectral_norm.tolist(), report.certified.tolist()
        ([0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    check_loop("contraction", net)
    for name, value in (("steps", steps), ("exact_up_to", exact_up_to), ("iterations", iterations)):
        check_count("contraction", name, value)
    with torch.inference_mode(False):
        call = Call(args, kwargs).detached()
    with opened(net, call) as space, torch.no_grad():
        g, start = FunctionMap(space.step, space.start.shape), space.start
        run = iterate(g, start, start, Picard(), Never(), steps, keep_outputs=False)
        found = _polish(space, run)
        settled = found.status == Status.converged
        only_run = ~settled & (run.status == Status.converged)
        point = torch.where(only_run[:, None], run.value, found.value)
        status = torch.where(settled, found.status, run.status)
        there = torch.where((status == Status.converged)[:, None], point, torch.nan)
        spectral = spectrum(space.undamped, space.states(there), exact_up_to, iterations)
        eigenvalues = spectral.eigenvalues
        if space.has_kernel and not spectral.exact:  # of which damping leaves alpha, and which Arnoldi may not find
            eigenvalues = torch.cat([eigenvalues, 0 * eigenvalues[:, :1]], dim=1)
        own = spectrum(space.step, there, exact_up_to, iterations).radius if space.departure else None
        certified, reason = _certify(net, space, call)
        return Contraction(
            spectral_norm=spectral.norm,
            spectral_radius=spectral.radius,
            certified=certified,
            reason=reason,
            eigenvalues=eigenvalues,
            asymptotic_rate=damped_rate(eigenvalues, space.alpha) if own is None else own,
            exact=spectral.exact,
            alpha=space.alpha,
            space=space.name,
            size=space.size,
            status=status,
            fixed_point=space.states(point),
            lengths=torch.stack(run.moved),
            errors=_errors(space, point, steps),
        )


def _polish(space: Space, run: Trace) -> Trace:
    """Go from the last iterate to the fixed point; from the start where there is no such iterate."""
    went = (run.status == Status.diverged) | ~run.value.isfinite().all(dim=1)
    start = torch.where(went[:, None], space.start, run.value)
    g, alpha = (space.step, 0.0) if space.departure else (space.undamped, space.alpha)  # a damped step hides residuals
    solver: Solver = Newton() if start.shape[1] <= _NEWTON_UP_TO else Anderson(memory=10, damping=alpha)
    tolerance = Tolerance(max(50 * torch.finfo(start.dtype).eps, 1e-12))
    return iterate(FunctionMap(g, start.shape), start, start, solver, tolerance, 100, compact=False, keep_outputs=False)


def _errors(space: Space, point: Tensor, steps: int) -> Tensor:
    """Run the loop once more, now that the fixed point is known: no state has been kept."""
    s, errors = space.start, list[Tensor]()
    for _ in range(steps):
        s = space.step(s)
        errors.append((s - point).norm(dim=1))
    return torch.stack(errors)


def _certify(net: ContextLoop, space: Space, call: Call) -> tuple[Tensor | None, str]:
    if space.departure:
        return None, space.departure
    try:
        bound = Certifier(net, call, at_call=True).bound()
    except NoBoundError as error:
        return None, str(error)
    return bound.to(space.start.device).expand(len(space.start)).clone(), ""


def _row(name: str, values: Tensor) -> str:
    shown = values[values.isfinite()]
    if not len(shown):
        return f"  {name}: unknown"
    low, middle, high = (float(q) for q in torch.quantile(shown.double(), shown.new_tensor([0.0, 0.5, 1.0]).double()))
    return f"  {name}: {low:.3g} to {high:.3g}, median {middle:.3g}"


_NEWTON_UP_TO = 64
