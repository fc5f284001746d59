"""Spectral norms and eigenvalues against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchcbl.theory.spectra import spectrum


def matrices(n: int, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(count, n, n, dtype=torch.float64, generator=generator) / n**0.5
    scales = torch.linspace(0.2, 2.0, count, dtype=torch.float64)[:, None, None]
    return a * scales


def apply(a: Tensor):  # type: ignore[no-untyped-def]
    return lambda s: (a @ s[:, :, None])[:, :, 0] + 1.0


def test_whole_jacobians() -> None:
    a = matrices(7)
    found = spectrum(apply(a), torch.randn(4, 7, dtype=torch.float64), exact_up_to=7, iterations=1)
    assert found.exact
    torch.testing.assert_close(found.norm, torch.linalg.matrix_norm(a, ord=2), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.radius, torch.linalg.eigvals(a).abs().amax(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("iterations", [5, 20, 40, 100])
def test_krylov_methods_reach_the_norm_from_below(iterations: int) -> None:
    a = matrices(40)
    norm, radius = torch.linalg.matrix_norm(a, ord=2), torch.linalg.eigvals(a).abs().amax(1)
    found = spectrum(apply(a), torch.randn(4, 40, dtype=torch.float64), exact_up_to=3, iterations=iterations)
    assert not found.exact
    assert (found.norm <= norm * (1 + 1e-12)).all()
    if iterations >= 20:
        torch.testing.assert_close(found.norm, norm, rtol=1e-2, atol=0)
    if iterations >= 40:
        torch.testing.assert_close(found.norm, norm, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.radius, radius, rtol=1e-8, atol=0)


def test_low_rank_is_found_at_once_and_rounding_adds_nothing() -> None:
    u = torch.randn(2, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = 0.01 * u @ torch.randn(2, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = spectrum(apply(a), torch.zeros(2, 50, dtype=torch.float64), exact_up_to=3, iterations=12)
    torch.testing.assert_close(found.norm, torch.linalg.matrix_norm(a, ord=2), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.radius, torch.linalg.eigvals(a).abs().amax(1), rtol=1e-8, atol=0)


def test_matrices_that_repeat_over_positions() -> None:
    """As those of a context that is averaged over positions and written to all of them, on which LAPACK gives up."""
    small = matrices(4)
    a = torch.kron(small, torch.full((16, 16), 1 / 16, dtype=torch.float64))
    found = spectrum(apply(a), torch.zeros(4, 64, dtype=torch.float64), exact_up_to=64, iterations=1)
    assert found.eigenvalues.shape == (4, 64)
    torch.testing.assert_close(found.radius, torch.linalg.eigvals(small).abs().amax(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.eigenvalues.sum(1).real, small.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-9, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_that_of_the_matrix(scale: float, dtype: torch.dtype) -> None:
    a = scale * matrices(50)
    found = spectrum(apply(a.to(dtype)), torch.zeros(4, 50, dtype=dtype), exact_up_to=3, iterations=40)
    torch.testing.assert_close(found.norm.double(), torch.linalg.matrix_norm(a, ord=2), rtol=1e-5, atol=0)


def test_without_forward_mode_and_without_a_graph() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return 2 * x

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return 2 * g

    s = torch.randn(3, 5, dtype=torch.float64)
    for exact_up_to in (2, 5):
        assert spectrum(Double.apply, s, exact_up_to, 5).norm.tolist() == pytest.approx([2.0] * 3)
        assert spectrum(torch.ones_like, s, exact_up_to, 5).norm.tolist() == [0.0] * 3


def test_a_sample_that_is_not_finite_harms_no_other() -> None:
    a = matrices(6)
    s = torch.randn(4, 6, dtype=torch.float64)
    s[2] = torch.nan
    for exact_up_to in (2, 6):
        found = spectrum(lambda s: torch.sin((a @ s[:, :, None])[:, :, 0]), s, exact_up_to, 6)
        assert found.norm.isnan().tolist() == [False, False, True, False]
        assert found.radius.isnan().tolist() == [False, False, True, False]


def test_a_sample_s_numbers_do_not_depend_on_its_batch() -> None:
    a = matrices(30)
    s = torch.randn(4, 30, dtype=torch.float64)
    whole = spectrum(apply(a), s, 3, 10)
    for i in range(4):
        alone = spectrum(apply(a[i : i + 1]), s[i : i + 1], 3, 10)
        torch.testing.assert_close(alone.norm[0], whole.norm[i], rtol=1e-9, atol=0)
