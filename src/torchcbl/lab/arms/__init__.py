"""The arms of a comparison: the same backbone from the same weights, with feedback, without, and with each control."""

from __future__ import annotations

import difflib

from torchcbl.lab.arms.base import Arm, Derived, Plain
from torchcbl.lab.arms.contexts import FrozenContext, FrozenLoop, LabelContext, ShuffledContext, ZeroContext
from torchcbl.lab.arms.loops import SITES, Loop
from torchcbl.lab.arms.matched import EnsembleArm, WiderFlops, WiderParams
from torchcbl.lab.arms.released import Released
from torchcbl.lab.arms.seeds import derive_seed, example_of, seeded
from torchcbl.lab.arms.supervised import DeepSupervision
from torchcbl.lab.arms.untied import UntiedArm
from torchcbl.lab.recipe import ARM_NAMES

__all__ = ["ARMS", "SITES", "Arm", "derive_seed", "example_of", "find_arm", "seeded"]

_SAME = "network, adapters, parameters, losses, batch norm at each step, and computation"

_ALL: tuple[Arm, ...] = (
    Plain("standard", "everything that the loop brings along, taken together", "data, batches and first weights"),
    Loop("cbl", "nothing: it is the method itself", "everything"),
    Loop(
        "cbl-gate",
        "the paper's plain wording: a gate for an adapter, and the loss on the last answer alone",
        "network, context and computation",
        adapter="gate",
        weights="last",
        adjustable=False,
        family="cbl-gate",
    ),
    Loop("no-context", "that anything is fed back at all: z is zero", _SAME, map=ZeroContext),
    Loop(
        "shuffled-context",
        "that what is fed back is of this sample: z is another's",
        _SAME,
        map=ShuffledContext,
        fewest=2,
    ),
    Loop(
        "frozen-context",
        "that feedback is renewed: z stays that of step 0",
        _SAME,
        map=FrozenContext,
        loop=FrozenLoop,
        fewest_steps=2,
    ),
    Loop(
        "label-context",
        "nothing: it is told the label in place of its own answer, an upper bound on what the wires can carry",
        _SAME,
        oracle=True,
        map=LabelContext,
    ),
    DeepSupervision(
        "no-loop-deep-supervision",
        "the feedback, from a loss on several outputs",
        "backbone; number and weights of the losses, for uniform weights and T up to 3",
    ),
    UntiedArm(
        "untied",
        "that the same weights are used at each step: here each step has its own",
        "losses, adapters, context and depth of the computation; it has T + 1 times the parameters",
    ),
    WiderParams("wider-params", "the loop, from the parameters it adds", "number of parameters, within 1%"),
    WiderFlops("wider-flops", "the loop, from the computation it adds", "FLOPs of training, within 2%"),
    EnsembleArm(
        "ensemble",
        "the loop, from what the same training FLOPs buy as separate networks",
        "FLOPs of training, rounded down to whole networks",
    ),
    Derived("loop-free", "what feedback does to the answer, from what it did to the weights", "weights"),
    Released(
        "as-released-standard",
        "the released comparison: no loop, but dropout",
        "network, data and batches",
    ),
    Released(
        "as-released-cbl",
        "the released comparison: a loop, but no dropout",
        "network, data and batches",
        feedback=True,
        dropout=False,
    ),
    Released(
        "as-released-standard-no-dropout",
        "the loop of the released code, from the dropout of its baseline",
        "network, data, batches and dropout (none) with as-released-cbl",
        dropout=False,
    ),
    Released(
        "as-released-cbl-dropout",
        "the loop of the released code, from the dropout of its baseline",
        "network, data, batches and dropout (0.5) with as-released-standard",
        feedback=True,
    ),
)
ARMS = {arm.name: arm for arm in _ALL}
assert tuple(ARMS) == ARM_NAMES


def find_arm(name: str) -> Arm:
    """Look an arm up by name.

    Raises:
        ValueError: There is no such arm; the message names the closest.
    """
    if name in ARMS:
        return ARMS[name]
    close = difflib.get_close_matches(name, ARMS, n=1)
    hint = f": did you mean '{close[0]}'?" if close else "."
    raise ValueError(f"unknown arm '{name}'{hint} Arms: {', '.join(ARMS)}.")
