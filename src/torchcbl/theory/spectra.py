"""The spectral norm and the eigenvalues of a Jacobian, for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.solvers.jacobian import jacobian, product

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """What is known of dG/ds at a point, sample by sample.

    Args:
        norm: Largest singular value, (B,); where not `exact`, a lower bound that Lanczos' method found.
        eigenvalues: All N of them where `exact`, else the Ritz values of Arnoldi's method, (B, k) complex.
        exact: Whether the whole Jacobian was computed.
    """

    norm: Tensor
    eigenvalues: Tensor
    exact: bool

    @property
    def radius(self) -> Tensor:
        """Largest modulus of an eigenvalue, (B,)."""
        return largest(self.eigenvalues.abs())


def spectrum(g: Function, s: Tensor, exact_up_to: int, iterations: int) -> Spectrum:
    """Compute the spectral norm and the eigenvalues of dG/ds at s (B, N).

    Args:
        g: Maps (B, N) to (B, N), sample by sample.
        s: Where.
        exact_up_to: The largest N for which the whole Jacobian is computed.
        iterations: Products with J, and with its transpose, where it is not.

    Source:
        Golub and Kahan 1965 (bidiagonalisation); Arnoldi 1951; both with full reorthogonalisation.
    """
    if s.shape[1] <= exact_up_to:
        whole = jacobian(g, s)
        norm = _or_nan(whole, lambda safe: largest(torch.linalg.svdvals(safe)))
        return Spectrum(norm, _or_nan(whole, _eigenvalues), exact=True)
    forward, backward = _products(g, s)
    k = min(iterations, s.shape[1])
    return Spectrum(_golub_kahan(forward, backward, s, k), _arnoldi(forward, s, k), exact=False)


def largest(values: Tensor) -> Tensor:
    """Return the largest of each row, 0 for an empty one."""
    found: Tensor = values.amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    return found


def _products(g: Function, s: Tensor) -> tuple[Function, Function]:
    """Return v -> J v and u -> J^T u at s."""
    with torch.enable_grad():
        at = s.detach().requires_grad_()
        value = g(at)

    def backward(u: Tensor) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(s)
        (pulled,) = torch.autograd.grad(value, at, u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(s) if pulled is None else pulled

    def forward(v: Tensor) -> Tensor:
        try:
            return product(g, s, v)
        except (RuntimeError, NotImplementedError):  # a part of G has no forward mode: differentiate J^T u by u
            return _twice_backward(g, s, v)

    return forward, backward


def _twice_backward(g: Function, s: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad():
        at = s.detach().requires_grad_()
        value = g(at)
        u = torch.zeros_like(value, requires_grad=True)
        if not value.requires_grad:
            return torch.zeros_like(s)
        (pulled,) = torch.autograd.grad(value, at, u, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:
            return torch.zeros_like(s)
        (pushed,) = torch.autograd.grad(pulled, u, v, allow_unused=True)
    return torch.zeros_like(s) if pushed is None else pushed


def _start(s: Tensor) -> Tensor:
    """The same random direction for every sample, so that none depends on its batch."""
    generator = torch.Generator().manual_seed(0)
    v: Tensor = torch.randn(s.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(s)
    return v.div(v.norm()).expand_as(s)


def _golub_kahan(forward: Function, backward: Function, s: Tensor, k: int) -> Tensor:
    """Largest singular value of the k-step bidiagonal matrix of J: never above J's own."""
    right, left, small = [_start(s)], list[Tensor](), s.new_zeros(len(s), k, k + 1)
    scale = s.new_zeros(len(s))
    for j in range(k):
        u = forward(right[j])
        scale = torch.maximum(scale, u.norm(dim=1))
        u = _orthogonal(u, left)
        small[:, j, j] = alpha = u.norm(dim=1)
        left.append(_unit(u, alpha, scale))
        v = backward(left[j])
        scale = torch.maximum(scale, v.norm(dim=1))
        v = _orthogonal(v, right)
        small[:, j, j + 1] = beta = v.norm(dim=1)
        right.append(_unit(v, beta, scale))
    return _or_nan(small, lambda safe: largest(torch.linalg.svdvals(safe)))


def _arnoldi(forward: Function, s: Tensor, k: int) -> Tensor:
    """Eigenvalues of the k-step Hessenberg matrix of J, (B, k): near J's outermost ones, neither bound."""
    basis, small, scale = [_start(s)], s.new_zeros(len(s), k, k), s.new_zeros(len(s))
    for j in range(k):
        w = forward(basis[j])
        scale = torch.maximum(scale, w.norm(dim=1))
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            for i, q in enumerate(basis):
                share = (w * q).sum(dim=1)
                small[:, i, j] += share
                w = w - share[:, None] * q
        length = w.norm(dim=1)
        if j + 1 < k:
            small[:, j + 1, j] = length
            basis.append(_unit(w, length, scale))
    return _or_nan(small, _eigenvalues)


def _eigenvalues(matrices: Tensor) -> Tensor:
    """All eigenvalues; LAPACK gives up on some matrices of low rank, which are then cut down to that rank.

    With J = U S V^T, J and S V^T U have the same ones.
    """
    try:
        found: Tensor = torch.linalg.eigvals(matrices)
    except RuntimeError:
        u, s, v = torch.linalg.svd(matrices)
        found = s.new_zeros(s.shape, dtype=torch.promote_types(s.dtype, torch.complex64))
        ranks = (s > torch.finfo(s.dtype).eps * s.shape[1] * s[:, :1]).sum(dim=1).tolist()
        for i, rank in enumerate(ranks):
            small = s[i, :rank, None] * (v[i, :rank] @ u[i, :, :rank])
            found[i, :rank] = torch.linalg.eigvals(small)
    return found


def _or_nan(matrices: Tensor, f: Function) -> Tensor:
    """Apply f to the finite matrices of a batch; NaN for the others."""
    finite = matrices.isfinite().flatten(1).all(dim=1)
    found = f(torch.where(finite[:, None, None], matrices, torch.zeros_like(matrices)))
    kept: Tensor = torch.where(finite.reshape(-1, *[1] * (found.ndim - 1)), found, torch.nan)
    return kept


def _orthogonal(v: Tensor, basis: list[Tensor]) -> Tensor:
    for _ in range(2):
        for q in basis:
            v = v - (v * q).sum(dim=1, keepdim=True) * q
    return v


def _unit(v: Tensor, length: Tensor, scale: Tensor) -> Tensor:
    """v / ||v||; zero where it vanishes up to the rounding of vectors so long, so that what follows adds nothing."""
    usable = length > 10 * torch.finfo(v.dtype).eps * scale
    unit: Tensor = torch.where(usable[:, None], v / torch.where(usable, length, 1.0)[:, None], 0.0)
    return unit
