"""The loss over all steps (Eq. 9) and the weights lambda."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from torchcbl.halting import class_axis
from torchcbl.refinement import Refinement

Weights = str | Sequence[float] | Tensor
_GEOMETRIC_RATIO = 0.5


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean cross entropy where a loop's outputs have their classes: (B, K), (B, N, K) or (B, K, H, W).

    Args:
        output: y.
        target: Class indices, (B,), (B, N) or (B, H, W); or probabilities of y's shape.

    Raises:
        ValueError: There is one class alone.
    """
    axis = class_axis(output)
    if output.shape[axis] == 1:
        raise ValueError(
            f"the output has one class alone, shape {tuple(output.shape)}, whose cross entropy is 0 whatever it says: "
            "pass criterion=nn.functional.binary_cross_entropy_with_logits for yes or no, mse_loss for a number."
        )
    target = target.movedim(axis, 1) if target.ndim == output.ndim else target
    return F.cross_entropy(output.movedim(axis, 1), target)


def refinement_loss(
    refinement: Refinement,
    target: Tensor,
    weights: Weights = "uniform",
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """Sum the losses of all outputs, weighted.

        L = sum_{tau=0}^{T} lambda_tau * criterion(y_tau, target)                 (Eq. 9)

    Its gradients are those of the loop's gradient rule: "bptt" (the default) and "checkpointed" give one to every
    output, "truncated" to the last k, "phantom" and "implicit" to y_T alone, and all of them to y_0. A sample that was
    done early keeps the weights: its last output stands for its remaining steps.

    Args:
        refinement: What `net.refine(x)` returned: outputs y_0..y_T.
        target: What `criterion` takes as its second argument; class indices for the default, (B,), or (B, N) or (B, H,
            W) where y has positions.
        weights: "last" (only y_T), "uniform" (1 / (T + 1) each), "linear" (proportional to tau + 1), "geometric"
            (each step twice the one before), or T + 1 numbers that sum to 1. A tensor's values count alone: it gets no
            gradient.
        criterion: Any criterion(output, target) that returns a scalar tensor; by default cross entropy over the
            classes, which are on y's last axis, or on axis 1 of (B, K, H, W).

    Returns:
        The loss, a scalar tensor.

    Raises:
        ValueError: The weights' name is unknown, their number is not T + 1, one is negative, they do not sum to 1, or
            they weight an output that the loop's gradient rule leaves without a gradient; or y has a single class and
            no criterion of its own.
        TypeError: They are no numbers.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops, Eq. 9.

    Example:
        >>> import torch
        >>> y = torch.zeros(4, 10)
        >>> loss = refinement_loss(Refinement((y, y, y)), torch.arange(4), weights="linear")
        >>> round(loss.item(), 4)  # log 10
        2.3026
    """
    if not isinstance(refinement, Refinement):
        raise TypeError(
            f"refinement_loss needs what net.refine(x) returns, got {type(refinement).__name__}: net(x) is y_T alone."
        )
    lambdas = lambda_weights(weights, len(refinement.outputs) - 1)
    _check_gradients(refinement.outputs, lambdas)
    shares: dict[
        int, float
    ] = {}  # a finished sample's last output stands for its remaining steps: one object, one loss
    for weight, output in zip(lambdas, refinement.outputs, strict=True):
        shares[id(output)] = shares.get(id(output), 0.0) + weight
    distinct = {id(output): output for output in refinement.outputs}
    terms = [weight * criterion(distinct[key], target) for key, weight in shares.items() if weight != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    if total.ndim != 0:
        raise ValueError(
            f"criterion returned shape {tuple(total.shape)}, expected a scalar: use reduction='mean' or 'sum'."
        )
    return total


def _check_gradients(outputs: Sequence[Tensor], lambdas: Sequence[float]) -> None:
    """Refuse weights on outputs between the first and the last that have no gradient where the last one has."""
    if not outputs[-1].requires_grad:
        return
    lost = [tau for tau in range(1, len(outputs) - 1) if lambdas[tau] and not outputs[tau].requires_grad]
    if lost:
        raise ValueError(
            f"weights give lambda_{lost[0]} = {lambdas[lost[0]]:.3g} to y_{lost[0]}, which has no gradient: "
            "gradient='implicit' and 'phantom' differentiate y_T (and y_0) alone, 'truncated' its last k outputs (and "
            "y_0). Give the others no weight, as weights='last' does, or use gradient='bptt' or 'checkpointed', which "
            "differentiate every step."
        )


def lambda_weights(weights: Weights, steps: int) -> list[float]:
    """Return lambda_0..lambda_T for T = `steps`; they sum to 1.

    Raises:
        ValueError: The name is unknown, their number is not T + 1, one is negative, or they do not sum to 1.
        TypeError: They are no numbers.

    Example:
        >>> lambda_weights("linear", 2)
        [0.16666666666666666, 0.3333333333333333, 0.5]
    """
    if isinstance(weights, str):
        return _named(weights, steps)
    try:
        values = [float(weight) for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"weights must be a name or a flat sequence of numbers, got {weights!r}.") from error
    if len(values) != steps + 1:
        raise ValueError(
            f"weights has {len(values)} numbers, expected {steps + 1}: one for each output y_0..y_{steps}."
        )
    if min(values) < 0:
        raise ValueError(f"weights must not be negative, got {values}.")
    if not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must sum to 1, got {values}, which sum to {sum(values):.6g}.")
    return values


def _named(name: str, steps: int) -> list[float]:
    if name == "last":
        raw = [0.0] * steps + [1.0]
    elif name == "uniform":
        raw = [1.0] * (steps + 1)
    elif name == "linear":
        raw = [tau + 1.0 for tau in range(steps + 1)]
    elif name == "geometric":
        raw = [_GEOMETRIC_RATIO ** (steps - tau) for tau in range(steps + 1)]
    else:
        raise ValueError(
            f"weights must be 'last', 'uniform', 'linear', 'geometric' or {steps + 1} numbers, got {name!r}."
        )
    return [value / sum(raw) for value in raw]
