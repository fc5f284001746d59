"""How a backbone is called: its arguments, their description, and a call that leaves its modes as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Example = Tensor | tuple[object, ...] | list[object] | Mapping[str, object]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the backbone."""

    args: tuple[object, ...] = ()
    kwargs: dict[str, object] = field(default_factory=dict)

    @classmethod
    def from_example(cls, example: Example) -> Call:
        """Read an example: a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            TypeError: The example is none of these.
            ValueError: It holds no tensor.
        """
        if isinstance(example, Tensor):
            return cls((example,))
        if isinstance(example, Mapping):
            call = cls((), {str(name): value for name, value in example.items()})
        elif isinstance(example, (tuple, list)):
            call = cls(tuple(example))
        else:
            raise TypeError(
                f"example must be a tensor, a tuple of positional arguments or a dict of keyword arguments, got "
                f"{type(example).__name__}: pass what the model is called with, for one batch."
            )
        if not any(isinstance(value, Tensor) for value in call.values()):
            raise ValueError(
                "example holds no tensor: pass what the model is called with, for one batch. Tensors must be "
                "arguments themselves, not in a dict or list: wrap the model in a module that takes them one by one."
            )
        return call

    def values(self) -> list[object]:
        """All arguments, positional ones first."""
        return [*self.args, *self.kwargs.values()]

    def run(self, module: nn.Module) -> object:
        """Call the module with these arguments."""
        return module(*self.args, **self.kwargs)

    def pattern(self) -> tuple[int, tuple[str, ...]]:
        """How many positional and which keyword arguments there are, in any order: what a traced cut is made for."""
        return len(self.args), tuple(sorted(self.kwargs))

    def batch_size(self) -> int:
        """How many samples there are, read off the first tensor that has axes."""
        sizes = [value.shape[0] for value in self.values() if isinstance(value, Tensor) and value.ndim]
        return sizes[0] if sizes else 1

    def resized(self) -> Call:
        """The same call with its first sample alone; with that sample twice if there is but one."""
        size = self.batch_size()

        def resize(value: object) -> object:
            if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != size:
                return _copy(value)
            return value.detach()[:1].clone() if size != 1 else torch.cat([value.detach()] * 2)

        return self.mapped(resize)

    def selected(self, index: Tensor) -> Call:
        """The same call with some of its samples, given their indices (b,)."""
        size = self.batch_size()

        def pick(value: object) -> object:
            has_samples = isinstance(value, Tensor) and value.ndim and value.shape[0] == size
            return value.index_select(0, index) if has_samples and isinstance(value, Tensor) else value

        return self.mapped(pick)

    def mapped(self, change: Callable[[object], object]) -> Call:
        """The same call with every argument changed."""
        return Call(
            tuple(change(value) for value in self.args), {name: change(value) for name, value in self.kwargs.items()}
        )

    def detached(self) -> Call:
        """The same call with copies of its tensors, so that a backbone that writes into its input harms nobody."""
        return self.mapped(_copy)


def _copy(value: object) -> object:
    return value.detach().clone() if isinstance(value, Tensor) else value


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Put modules and every submodule in train or eval mode and give each its own mode back.

    The flags alone are set: a `train` or `eval` of a module's own may do more than that, as merging weights, which
    nothing here could undo bit for bit.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, mode in modes:
        if mode is not training:  # setting an attribute of a module takes a while
            part.training = training
    try:
        yield
    finally:
        for part, mode in modes:
            if part.training is not mode:
                part.training = mode


def evaluating(*modules: nn.Module) -> AbstractContextManager[None]:
    """Put modules and every submodule in eval mode and give each its own mode back; see `in_mode`."""
    return in_mode(False, *modules)


def describe(call: Call) -> dict[str, object]:
    """Describe a call as plain data, without its values: enough to make another of the same form."""
    return {
        "args": [_describe_value(value) for value in call.args],
        "kwargs": {name: _describe_value(value) for name, value in call.kwargs.items()},
    }


def _describe_value(value: object) -> dict[str, object]:
    if isinstance(value, Tensor):
        described: dict[str, object] = {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
        }
        if not value.is_floating_point() and not value.is_complex() and value.numel():
            described["fill"] = int(value.max())
        return described
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(
        f"an argument of type {type(value).__name__} in the example cannot be described in a file: the example may "
        "hold tensors, numbers, strings, booleans and None."
    )


def synthesise(description: Mapping[str, object], backbone: nn.Module) -> Call:
    """Make a call of the described form, on the backbone's device.

    Floats are standard normal (seeded) and follow the backbone where it has no longer any parameter of their dtype;
    whole numbers are the largest one seen.
    """
    generator = torch.Generator().manual_seed(0)
    args, kwargs = description["args"], description["kwargs"]
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
    return Call(
        tuple(_make_value(value, generator, backbone) for value in args),
        {name: _make_value(value, generator, backbone) for name, value in kwargs.items()},
    )


def placement(backbone: nn.Module, call: Call) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for what is added: those of the backbone's parameters, else of the call's tensors."""
    tensors = [*backbone.parameters(), *(value for value in call.values() if isinstance(value, Tensor))]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating:
        return floating[0].device, floating[0].dtype
    return tensors[0].device if tensors else torch.device("cpu"), torch.get_default_dtype()


def _make_value(value: Mapping[str, object], generator: torch.Generator, backbone: nn.Module) -> object:
    if "dtype" not in value:
        return value["value"]
    device, dtype = placement(backbone, Call())
    described, shape = getattr(torch, str(value["dtype"])), value["shape"]
    assert isinstance(described, torch.dtype)
    assert isinstance(shape, list)
    if "fill" in value:
        fill = value["fill"]
        assert isinstance(fill, int)
        return torch.full(shape, fill, dtype=described, device=device)
    if described.is_complex or any(parameter.dtype == described for parameter in backbone.parameters()):
        dtype = described
    drawn_in = torch.complex64 if described.is_complex else None
    made = torch.randn(shape, generator=generator, dtype=drawn_in, device="cpu")  # whatever torch's default device is
    return made.to(device=device, dtype=dtype)
