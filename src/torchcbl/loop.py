"""ContextLoop: puts the parts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchcbl.adapters import AdapterChoice, attending, build_adapters, describe_adapters
from torchcbl.arguments import check_alpha, check_context, check_keywords
from torchcbl.assembly import find_output, made_up, make_context, make_plan, unwrap_compiled
from torchcbl.audit import Audit, audit_at_random, audit_loop, check_loop_is_causal, dead_adapters_message
from torchcbl.backbone.calls import Call, Example, describe, placement
from torchcbl.backbone.causality import causal_arguments, has_positions_of
from torchcbl.backbone.language import generate, without_cache
from torchcbl.backbone.layout import Key, read_like
from torchcbl.backbone.names import match_names
from torchcbl.backbone.site import Site, build_sites, check_order
from torchcbl.context import Context
from torchcbl.halting import Halting
from torchcbl.refinement import Refinement
from torchcbl.rollout import LoopMap, Rollout, solve_loop
from torchcbl.schedules import Psi, find_schedule
from torchcbl.settings import GradientChoice, RaiseOn, Settings, SolverChoice, raise_if_asked
from torchcbl.sharing.shareable import Shareable
from torchcbl.stages import Cut, Plan, choose_plan, make_cut
from torchcbl.stages.replayed import ReplayedCut
from torchcbl.stages.traced import TracedCut
from torchcbl.stages.tracing import NotTraceable
from torchcbl.step_norm import batch_norms, choose_step_norm, module_key
from torchcbl.trainable import Trainable

if TYPE_CHECKING:
    from torchcbl.theory.contractive import Bound


@dataclass(frozen=True)
class LoopConfig:
    """What a loop was built with, as plain data."""

    steps: int
    settings: Settings
    alpha: float
    schedule: str
    context: Context
    custom_context: bool
    adapter: str | dict[str, str]
    example: dict[str, object]
    step_norm: str
    channel_dim: int | None
    output: Key | None
    cut: str


class ContextLoop(Trainable, Shareable):
    """Put top-down feedback into a network.

        y_0 = F(x),   z_t = g(y_t),   h_{t+1} = alpha h_t + (1 - alpha) psi(h, z_t),   y_{t+1} = head(h_{t+1})

    The backbone is neither edited nor subclassed: its parameters and its `state_dict` keys stay what they were, and
    what lies below the lowest site is computed once per call, however many steps there are.

    Args:
        backbone: Any module, deterministic in eval mode, that returns logits y of shape (B, K), (B, N, K) or (B, K, H,
            W), plain or within a tuple, dict or dataclass. One that is compiled is taken uncompiled: compile the loop.
        sites: Dotted names or globs of submodules (`*` within a level, `**` across levels); their outputs are h^(l)
            (of a tuple or dataclass, its first tensor). Those named one by one stand in the order in which they run.
        example: What the backbone is called with, for shapes: a tensor, a tuple of positional or a dict of keyword
            arguments. Two samples are enough; it is run a few times and not kept.
        adapter: A name (`torchcbl.adapters.ADAPTERS` has them all), a module class or factory called with (`Site`,
            context dim), a module, or a dict of these by site name or glob.
        context: g, by default `Context(dim=64)`: an affine map of the logits.
        steps: T, the number of feedback steps; at least 0. May be changed at call time.
        alpha: Weight of the OLD state in [0, 1]: h_{t+1} = alpha h_t + (1 - alpha) psi(h, z_t). 0 replaces it.
        schedule: "repropagate" (bottom-up through all sites), "synchronous" (one stage per step) or "literal" (Eqs. 7-8
            to the letter: only the top site reaches the output). See `torchcbl.schedules`.
        solver: How the next state is chosen: "picard" (the default, the loop itself), "anderson", "broyden", "newton",
            or an object of `torchcbl.solvers`. May be changed at call time, as the next three.
        gradient: "bptt" (the default), "checkpointed", "truncated", "phantom", "implicit", or an object of
            `torchcbl.gradients`. docs/choosing.md says which, when.
        halting: When a sample is done: `Tolerance`, `Confidence`, `Agreement`, combined by | and &; None takes T
            steps. In eval mode finished samples leave the batch.
        raise_on: Names of `Status` that are an error, as ("diverged", "non_finite").
        step_norm: Batch norm in the replayed part: "per_step" (the default: statistics of each step's own), "shared",
            "frozen" (the default where a solver or a gradient rule needs one map for all steps) or "shared_tracked".
            See `torchcbl.step_norm.StepNorm`.
        channel_dim: Channel axis of the hidden states; None finds it from the module that made them.
        output: Key, field or index of y in what the backbone returns; None takes "logits", "last_hidden_state", "out",
            or the first tensor.
        cut: "auto", "traced" (torch.fx, or an error that says why not) or "replayed". A trace keeps the values that
            plain Python attributes read by `forward` have now; a backbone whose flags change later wants "replayed".
            torch.fx is not made for threads: build loops before other threads run modules.
        allow_dead: Whether adapters that cannot move the output are allowed.

    Raises:
        ValueError: A site is unknown, never runs, runs twice or is named twice; an argument is out of its range; the
            backbone is not deterministic; or an adapter is dead.
        TypeError: A site or the backbone returns no tensor, or an argument is of the wrong type.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops: Amplifying Deep Reasoning with Iterative Top-Down Feedback.

    Example:
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(5, 4)
        >>> net = ContextLoop(backbone, sites="1", example=x, context=Context(dim=6))
        >>> net(x).shape, len(net.refine(x, steps=4).outputs)
        (torch.Size([5, 3]), 5)
        >>> torch.equal(net(x), backbone(x))  # adapters start as the identity
        True
    """

    @torch.inference_mode(False)  # parameters made in inference mode could never be trained
    def __init__(
        self,
        backbone: nn.Module,
        sites: str | Sequence[str],
        example: Example,
        adapter: AdapterChoice = "film",
        context: Context | None = None,
        steps: int = 2,
        alpha: float = 0.0,
        schedule: str = "repropagate",
        *,
        solver: SolverChoice | None = None,
        gradient: GradientChoice | None = None,
        halting: Halting | None = None,
        raise_on: RaiseOn = (),
        step_norm: str | None = None,
        channel_dim: int | None = None,
        output: Key | None = None,
        cut: str = "auto",
        allow_dead: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise TypeError(f"backbone must be an nn.Module, got {type(backbone).__name__}.")
        backbone = unwrap_compiled(backbone)
        context = check_context(context)
        settings, alpha = Settings.make(steps, solver, gradient, halting, raise_on), check_alpha(alpha)
        order = find_schedule(schedule)
        call = without_cache(backbone, Call.from_example(example))
        self.backbone = backbone
        self.output_layout, y = find_output(backbone, call, output)
        placed = build_sites(backbone, match_names(backbone, sites), call.detached(), channel_dim)
        check_order(sites, [one.site.name for one in placed])
        start = order.start(len(placed))
        draft, source = make_plan(backbone, placed, start, call, context.module_name)
        plan, chosen = choose_plan(backbone, draft, call, cut)
        replayed = chosen.replayed_modules()
        self.plan: Plan = plan
        step_norm = "frozen" if step_norm is None and settings.needs_one_map else step_norm
        self.step_norm = choose_step_norm(step_norm, batch_norms(replayed.items()), settings.steps)
        self.norm_names = tuple(batch_norms(replayed.items()))
        """Which batch norms run again at the later steps."""
        self.has_batch_norm = bool(self.norm_names)
        self._prepare_cuts(chosen)
        ordered = causal_arguments(backbone, call, self.output_layout, y)
        self.sites: tuple[Site, ...] = tuple(
            replace(one.site, causal=bool(ordered) and has_positions_of(one.site, y)) for one in placed
        )
        device, dtype = placement(backbone, call)
        read = y.dtype if source is None else source.dtype
        self.context = make_context(context, y, source).to(device, torch.promote_types(dtype, read))
        modules = build_adapters(adapter, self.sites, context.dim)
        self.adapters = nn.ModuleDict(
            {
                module_key(one.site.name): module.to(device, torch.promote_types(dtype, one.dtype))
                for one, module in zip(placed, modules, strict=True)
            }
        )
        self.backbone_frozen = False
        self.bound: Bound | None = None
        """What `torchcbl.make_contractive` holds the loop to, if it was called."""
        self.config = LoopConfig(
            steps=settings.steps,
            settings=settings,
            alpha=alpha,
            schedule=schedule,
            context=replace(context, map=None),  # a lambda could not be pickled
            custom_context=context.map is not None,
            adapter=describe_adapters(adapter),
            example=describe(call),
            step_norm=self.step_norm.mode,
            channel_dim=channel_dim,
            output=output,
            cut=cut,
        )
        for part in (self.context, self.adapters, self.step_norm):
            part.train(backbone.training)
        self.training = backbone.training
        settings.check_map(self)
        if ordered:
            check_loop_is_causal(self, call.detached(), ordered)
        self._audit = audit_loop(self, call.detached(), measures=False)
        if self._audit.dead:
            self._audit = audit_at_random(self, self._audit, call.detached())
        if self._audit.dead and not allow_dead:
            raise ValueError(dead_adapters_message(self._audit))

    @property
    def steps(self) -> int:
        """T, unless a call says otherwise."""
        return self.config.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        raise AttributeError(
            f"steps of a loop cannot be set, got net.steps = {steps!r}: pass net.refine(..., steps={steps!r}), or "
            "build the loop with it."
        )

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the backbone's own output after T steps of feedback, with y_T (and, say, a loss from it) in it."""
        settings = self.config.settings
        self._check_keywords(kwargs)
        if settings.raise_on:
            return self._refine(Call(args, kwargs), settings).returned
        return self.solve(Call(args, kwargs), settings).returned

    def refine(
        self,
        *args: object,
        steps: int | None = None,
        solver: SolverChoice | None = None,
        gradient: GradientChoice | None = None,
        halting: Halting | None = None,
        raise_on: RaiseOn | None = None,
        **kwargs: object,
    ) -> Refinement:
        """Return the outputs of all steps.

        Args:
            *args: What the backbone is called with.
            steps: T for this call, at least 0; None, here and below, for the loop's own. 0 is the backbone, bit for
                bit.
            solver: A solver for this call.
            gradient: A gradient rule for this call.
            halting: A stopping rule for this call; `Never()` for none.
            raise_on: Which statuses are an error in this call.
            **kwargs: What the backbone is called with by keyword.

        Raises:
            ValueError: An argument is out of its range, or a fixed point is asked of a map that changes with the step.
            TypeError: An argument has another type, or a keyword that the backbone does not name looks like an option.
            RefinementError: Samples ended in a status that `raise_on` names.
        """
        settings = self.config.settings.changed(steps, solver, gradient, halting, raise_on)
        self._check_keywords(kwargs)
        return self._refine(Call(args, kwargs), settings)

    def _check_keywords(self, kwargs: dict[str, object]) -> None:
        if kwargs and not torch.compiler.is_compiling():
            check_keywords(self.backbone, kwargs, self.plan.pattern[1])

    def _refine(self, call: Call, settings: Settings) -> Refinement:
        rollout = self.solve(call, settings, measure=True)
        refinement = Refinement(rollout.outputs, rollout.path, rollout.returned)
        if settings.raise_on:
            raise_if_asked(refinement, settings)
        return refinement

    def generate(self, *args: object, **kwargs: object) -> object:
        """Generate tokens with feedback: the backbone's own `generate` (transformers), each token after T steps.

        Every token is computed from the whole sequence again, since a key/value cache would hold states without
        feedback.

        Args:
            *args: What the backbone's `generate` takes, as `input_ids`.
            **kwargs: The same by keyword, as `max_new_tokens`, `do_sample`.

        Raises:
            TypeError: The backbone cannot generate.
            ValueError: `use_cache=True` or a cache is passed.
        """
        return generate(self.backbone, self, args, kwargs)

    def audit(self, example: Example | None = None) -> Audit:
        """Establish which adapters can move the output, and what the loop costs, on a batch.

        Args:
            example: A batch; None makes one of the form the loop was built with (standard normal, seeded).

        Returns:
            Per adapter whether it is live, by gradient and by perturbation; parameters; FLOPs per step. The loop runs
            in eval mode meanwhile; its state, modes and random generators are as before afterwards.

        Raises:
            ValueError: The backbone fails on a batch that is made up like this, as one that looks for a certain token.
        """
        if example is not None:
            return audit_loop(self, Call.from_example(example).detached())
        return audit_loop(self, made_up(self.config.example, self.backbone))

    def run(self, call: Call, steps: int, psi: Sequence[Psi] | None = None) -> Rollout:
        """Take T steps one after the other, with other adapters than the loop's own if given.

        Args:
            call: The backbone's arguments.
            steps: T, at least 0.
            psi: One callable psi(h, z) per site, in execution order; None for the loop's adapters.
        """
        return self.solve(call, Settings.make(steps), psi=psi)

    def solve(self, call: Call, settings: Settings, measure: bool = False, psi: Sequence[Psi] | None = None) -> Rollout:
        """Run the loop as `settings` say.

        Args:
            call: The backbone's arguments.
            settings: T, solver, gradient rule and stopping rule.
            measure: Whether to measure how the states move where a plain loop would not.
            psi: One callable psi(h, z) per site, in execution order; None for the loop's adapters.
        """
        settings.check_map(self)
        call = without_cache(self.backbone, call)
        if settings.steps == 0:
            returned = call.run(self.backbone)
            return Rollout([self.read_output(returned)], returned)
        with self.mapped(call, psi) as g:
            return g.roll(settings.steps, measure) if settings.is_plain else solve_loop(g, settings)

    @contextmanager
    def mapped(self, call: Call, psi: Sequence[Psi] | None = None) -> Iterator[LoopMap]:
        """Run step 0 of a call, and make the map of its further steps for as long as the context is open."""
        own, cut = list(self.adapters.values()), self.cut_for(call)
        with attending(own) as tokens, cut.session():
            g = LoopMap(self, call, cut, own if psi is None else psi, tokens)
            if self.bound is None:
                yield g
                return
            from torchcbl.theory.contractive import held  # which few loops need

            with held(self, call):  # after step 0, which may move statistics
                yield g

    def read_output(self, returned: object) -> Tensor:
        """Find y in what the backbone returned, which may be a tuple where it was a dataclass (`return_dict=False`)."""
        return read_like(self.output_layout, returned, named=self.config.output is not None)

    def _prepare_cuts(self, like: Cut | None = None) -> None:
        """Make the planned cut, like one if given, and the replayed one that serves what the plan was not made for."""
        plan = replace(self.plan, kind="replayed", writes={})
        self._replayed = ReplayedCut(self.backbone, plan, self.step_norm, copy_all=True)
        try:
            if like is None:
                self._cut = make_cut(self.backbone, self.plan, self.step_norm)
            else:
                self._cut = like.replanned(self.plan, self.step_norm)
        except NotTraceable:  # a copy of a loop whose backbone has got hooks since
            self._cut = self._replayed

    def cut_for(self, call: Call) -> Cut:
        """Return the planned cut, or the replayed one where a call has another form or hooks came since.

        Raises:
            RuntimeError: The backbone, or a submodule of it, is not the one that the loop was built around.
        """
        planned = call.pattern() == self.plan.pattern and all(isinstance(v, Tensor) for v in call.values())
        cut = self._cut if planned else self._replayed
        if cut.backbone is not self.backbone:
            raise RuntimeError(
                "net.backbone is another module than the loop was built around, which would go on with the old one: "
                "build the ContextLoop again. (To compile, take torch.compile(net); nn.DataParallel makes such copies "
                "too: take DistributedDataParallel.)"
            )
        changes = cut.changes()
        if changes:
            raise RuntimeError(changes)
        return self._replayed if isinstance(cut, TracedCut) and cut.has_hooks() else cut

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        state.pop("_compiled_call_impl", None)  # bound to this loop; as nn.Module has it
        for name in ("_cut", "_replayed"):  # made again from the plan, around the copy's own modules
            del state[name]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare_cuts()

    def __repr__(self) -> str:
        return self._audit.describe(type(self).__name__, measures=False)
