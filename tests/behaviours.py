"""What every loop must do, whatever the backbone, adapter and schedule: one function per behaviour."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tempfile
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import torchcbl as cbl
from prefix import flops, parameters_below, reads
from subject import NotApplicableError, Subject, output_of

CACHES = ("past_key_values", "cache")


def identity_start(subject: Subject) -> None:
    """Before training every y_tau is the backbone's own."""
    net, batch = subject.net(), subject.batch(3)
    with torch.no_grad():
        reference = output_of(subject.backbone()(**batch))
        outputs = net.refine(**batch, steps=3).outputs
    assert len(outputs) == 4, f"3 steps gave {len(outputs)} outputs, expected y_0..y_3"
    for tau, output in enumerate(outputs):
        difference = float((output - reference).abs().max())
        assert difference <= subject.tolerance, f"y_{tau} differs from the backbone's output by {difference:.1e}"


def steps_zero_equality(subject: Subject) -> None:
    """With steps=0 everything that the backbone returns is returned, bit for bit, whatever the adapters would do."""
    net, batch = subject.net(awake=True), subject.batch(3)
    with torch.no_grad():
        expected, refined = subject.backbone()(**batch), net.refine(**batch, steps=0)
        first = net.refine(**batch, steps=2).outputs[0]
    assert len(refined.outputs) == 1, f"0 steps gave {len(refined.outputs)} outputs"
    assert torch.equal(refined.output, output_of(expected)), "y_0 is not the backbone's output bit for bit"
    pairs = zip(_tensors(refined.returned), _tensors(expected), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs), "what else is returned differs"
    difference = float((first - refined.output).abs().max())
    assert difference <= subject.tolerance, f"y_0 differs by {difference:.1e} when steps follow"


def _tensors(returned: object) -> list[Tensor]:
    values = {k: v for k, v in returned.items() if k not in CACHES} if isinstance(returned, Mapping) else returned
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def output_type(subject: Subject) -> None:
    """The loop returns what the backbone returns, with y_T in it."""
    net, batch = subject.net(awake=True), subject.batch(3)
    expected, returned, refined = subject.backbone()(**batch), net(**batch), net.refine(**batch)
    assert type(returned) is type(expected), f"{type(returned).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, Mapping):
        fields = [name for name in expected if name not in CACHES]  # a loop keeps none
        assert list(returned) == fields, f"fields {list(returned)} instead of {fields}"
    assert torch.equal(output_of(returned), refined.output), "what is returned does not hold y_T"
    assert torch.equal(output_of(refined.returned), refined.output), "Refinement.returned does not hold y_T"
    assert not torch.equal(refined.output, refined.outputs[0]), "awake adapters leave the output as it was"


def gradients_reach(subject: Subject) -> None:
    """Every live adapter gets a gradient, and so does all of the backbone that gets one without the loop."""
    plain, net, batch = subject.backbone(), subject.net(awake=True), subject.batch(3)
    _loss(output_of(plain(**batch))).backward()
    _loss(output_of(net(**batch))).backward()
    for site, live, module in zip(net.sites, _live(subject, net), net.adapters.values(), strict=True):
        moved = any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
        assert moved == live, f"the adapter at '{site.name}' is {'live' if live else 'dead'}, and " + (
            "gets a gradient" if moved else "gets no gradient"
        )
    parameters = dict(net.backbone.named_parameters())
    wanted = [name for name, p in plain.named_parameters() if p.grad is not None and bool(p.grad.any())]
    missing = [name for name in wanted if parameters[name].grad is None or not bool(parameters[name].grad.any())]
    assert not missing, f"no gradient reaches {missing} of the backbone"
    assert wanted, "the backbone has no parameter with a gradient, so this shows nothing"


def _loss(output: Tensor) -> Tensor:
    return (output * torch.linspace(-1, 1, output.numel()).to(output).view_as(output)).sum() + output.square().sum()


def _live(subject: Subject, net: cbl.ContextLoop) -> list[bool]:
    """Say which adapters must be live: all, but under `literal` the last alone."""
    return [subject.schedule != "literal"] * (len(net.sites) - 1) + [True]


def audit_truthful(subject: Subject) -> None:
    """An adapter is called live if, and only if, the output moves when it is perturbed."""
    net, batch = subject.net(awake=True), subject.batch(3)
    with torch.no_grad():
        reference = net(**batch)
        audit = net.audit(batch)
        for index, found in enumerate(audit.adapters):
            twin = copy.deepcopy(net)
            for parameter in list(twin.adapters.values())[index].parameters():
                parameter.mul_(1.5).add_(0.1)
            moved = not torch.equal(output_of(twin(**batch)), output_of(reference))
            assert moved == found.live, f"the adapter at '{found.site}': audit says live={found.live}, moved={moved}"
    live, expected = [found.live for found in audit.adapters], _live(subject, net)
    assert live == expected, f"live per site {live}, expected {expected} under schedule '{subject.schedule}'"


def batch_independence(subject: Subject) -> None:
    """A sample's output does not depend on which others are in the batch."""
    net, batch = subject.net(awake=True), subject.batch(3)
    with torch.no_grad():
        together = net.refine(**batch).output
        for index in range(3):
            alone = net.refine(**{name: value[index : index + 1] for name, value in batch.items()}).output[0]
            error = float((alone - together[index]).abs().max() / together[index].abs().max())
            assert error <= 1e-5, f"sample {index} alone differs from itself in the batch by {error:.1e} of its size"


def save_load_round_trip(subject: Subject) -> None:
    """A saved loop, loaded onto a backbone with the same weights, gives the same numbers."""
    net, batch = subject.net(awake=True, steps=3), subject.batch(3)
    with tempfile.TemporaryDirectory() as folder:
        net.save(folder)
        loaded = cbl.load(folder, subject.backbone()).eval()
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(net.config), "the loaded loop has another config"
    with torch.no_grad():
        same = torch.equal(output_of(loaded(**batch)), output_of(net(**batch)))
    assert same, "the loaded loop gives other numbers"


def deepcopy_and_pickle(subject: Subject) -> None:
    """Copies give the same numbers, and share nothing with the original."""
    net = subject.net(awake=True)
    _check_copy("deepcopy", net, copy.deepcopy(net), subject)
    plain = subject.backbone()
    plain(**subject.batch(3))  # some put hooks on themselves when they run
    try:
        pickle.dumps(plain)
    except Exception as error:  # of whatever class
        reason = str(error).splitlines()[0].removesuffix(" See:")
        raise NotApplicableError(f"the backbone alone cannot be pickled once it has run: {reason}") from error
    _check_copy("pickle", net, pickle.loads(pickle.dumps(net)), subject)


def _check_copy(how: str, net: cbl.ContextLoop, twin: cbl.ContextLoop, subject: Subject) -> None:
    batch = subject.batch(3)
    with torch.no_grad():
        expected = output_of(net(**batch))
        assert torch.equal(output_of(twin(**batch)), expected), f"the {how} gives other numbers"
        for parameter in twin.backbone.parameters():
            parameter.mul_(1.1).add_(0.1)
        assert torch.equal(output_of(net(**batch)), expected), f"the {how} shares weights with the original"
        assert not torch.equal(output_of(twin(**batch)), expected), f"the {how} does not run its own backbone"


def prefix_flops(subject: Subject) -> None:
    """T steps cost 1 + T x share, and nothing below the site that steps start from is computed again."""
    net, batch = subject.net(awake=True), subject.batch(3)
    start = subject.sites[-1] if subject.schedule == "literal" else subject.sites[0]
    below = parameters_below(subject.backbone(), start, batch)
    assert below, "no parameters below the site, so this shows nothing"
    counts = [reads(net, batch, steps, below) for steps in (0, 3)]
    assert counts[0] > 0, "no parameter below the site is read at step 0, so this shows nothing"
    assert counts[0] == counts[1], f"what is below '{start}' is read {counts[0]} times in 0 and {counts[1]} in 3 steps"
    audit = net.audit(batch)
    for steps in (0, 1, 4):
        total = flops(net, batch, steps) / 3
        expected = audit.flops_first + steps * audit.flops_step
        assert abs(total - expected) <= 1e-6 * expected, f"{steps} steps cost {total:,.0f}, expected {expected:,.0f}"
    assert audit.flops_step > 0, "a step costs nothing"


def train_eval_mode(subject: Subject) -> None:
    """Modes reach every part and stay; a training pass ends in finite gradients; eval answers are repeatable."""
    net, batch = subject.net(awake=True), subject.batch(3)
    assert not any(module.training for module in net.modules()), "a loop around a backbone in eval mode trains"
    net.train()
    assert all(module.training for module in net.modules()), "net.train() does not reach every module"
    _loss(net.refine(**batch).output).backward()
    broken = [name for name, p in net.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    assert not broken, f"in train mode the gradients of {broken} are not finite"
    net.audit()  # on a batch that is made up
    assert all(module.training for module in net.modules()), "the audit changes modes"
    net.eval()
    assert torch.equal(output_of(net(**batch)), output_of(net(**batch))), "in eval mode two calls differ"
    net.freeze_backbone().train()
    assert not any(module.training for module in net.backbone.modules()), "a frozen backbone is in train mode"
    assert all(module.training for module in net.adapters.modules()), "adapters of a frozen backbone do not train"


def repr_tells(subject: Subject) -> None:
    """Printing a loop tells its sites, adapters, cut, size and cost."""
    net = subject.net()
    adapter = type(next(iter(net.adapters.values()))).__name__
    wanted = [*subject.sites, adapter, subject.schedule, net.plan.kind, "steps=2", "FLOPs per sample", "live", "added"]
    missing = [part for part in wanted if part not in repr(net)]
    assert not missing, f"repr lacks {missing}:\n{net!r}"


BEHAVIOURS: dict[str, Callable[[Subject], None]] = {
    behaviour.__name__: behaviour
    for behaviour in (
        identity_start,
        steps_zero_equality,
        output_type,
        gradients_reach,
        audit_truthful,
        batch_independence,
        save_load_round_trip,
        deepcopy_and_pickle,
        prefix_flops,
        train_eval_mode,
        repr_tells,
    )
}
"""Every behaviour by name; each raises AssertionError with a clear text, or NotApplicableError where the backbone alone
cannot do it either."""
ESSENTIAL = ("identity_start", "output_type", "gradients_reach", "audit_truthful", "batch_independence")
"""Those that depend on the adapter and the schedule."""
