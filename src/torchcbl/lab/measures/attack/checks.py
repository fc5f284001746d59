"""Signs that a network hides its gradients, so that an attack's failure says nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOLERANCE = 0.01
"""Share of the images by which two accuracies may differ without a sign, or two images where those are more."""
FEW = 0.05
SEES_THE_LOOP = "seeing the loop helps the attacker"
"""Name of the check that tells nothing of a loop whose y_0 was not trained: the attack on y_0 has no aim there."""


@dataclass(frozen=True)
class Check:
    """One thing that holds where gradients are honest (Athalye et al. 2018, arXiv 1802.00420).

    Args:
        name: What is checked.
        passed: Whether it held.
        detail: What was found.
    """

    name: str
    passed: bool
    detail: str


def slack(n: int) -> float:
    """By how much accuracies on n images may differ without a sign."""
    return max(TOLERANCE, 2 / n)


def no_zero_gradients(zero: int, n: int) -> Check:
    """The gradient at the clean image vanishes for few images only."""
    return Check(
        "gradients do not vanish",
        zero <= FEW * n,
        f"{zero} of {n} images have a gradient of exactly zero (at most {FEW:.0%} allowed)",
    )


def stronger(
    name: str, strong: Mapping[float, float], weak: Mapping[float, float], n: int, names: Sequence[str]
) -> Check:
    """At every eps the attack that ought to be stronger leaves no more images right than the other."""
    worst = max(strong, key=lambda eps: strong[eps] - weak[eps])
    passed = strong[worst] - weak[worst] <= slack(n)
    detail = (
        f"at eps {worst:g}/255, {names[0]} leaves {100 * strong[worst]:.1f}% right, {names[1]} {100 * weak[worst]:.1f}%"
    )
    return Check(name, passed, detail)


def rises(accuracy: Mapping[float, float], loss: Mapping[float, float], n: int) -> Check:
    """With a larger eps the accuracy does not rise, and the loss does not fall."""
    pairs = list(itertools.pairwise(sorted(accuracy)))
    rising = [b for a, b in pairs if accuracy[b] > accuracy[a] + slack(n)]
    falling = [b for a, b in pairs if loss[b] < 0.99 * loss[a]]
    where = ", ".join(f"{eps:g}/255" for eps in sorted({*rising, *falling}))
    detail = f"accuracy rises, or loss falls, up to eps {where}" if where else "accuracy falls and loss rises with eps"
    return Check("the larger eps, the stronger", not where, detail)


def falls_to_nothing(accuracy: float, eps: float) -> Check:
    """With an eps so large that every image can be made nearly the same grey, hardly one stays right."""
    return Check(
        "nothing survives a large eps",
        accuracy <= FEW,
        f"{100 * accuracy:.1f}% stay right at eps {eps:g}/255 (at most {FEW:.0%} allowed)",
    )


def black_box_adds_little(broken: Mapping[float, float], n: int) -> Check:
    """Where gradients failed, random search does not succeed: the share of n images that it alone breaks, by eps."""
    worst = max(broken, key=lambda eps: broken[eps])
    return Check(
        "random search breaks no more than gradients",
        broken[worst] <= max(2 * TOLERANCE, 2 / n),
        f"at eps {worst:g}/255 it breaks {100 * broken[worst]:.1f}% of the images, which gradients could not",
    )
