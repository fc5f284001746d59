"""Saving a loop, exporting it, and sharing it on the hub."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, cast

from torch import nn

from torchcbl.adapters import AdapterChoice
from torchcbl.backbone.calls import Example
from torchcbl.context import Context
from torchcbl.halting import Halting
from torchcbl.settings import GradientChoice, SolverChoice

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from torchcbl.loop import ContextLoop


class Shareable:
    """What a loop can do with files and the hub; the work is done in `storage` and `hub`."""

    def save(self, folder: str | PathLike[str], *, include_backbone: bool = False) -> None:
        """Write adapters, context and per-step statistics to `folder`; see `torchcbl.sharing.storage.save`."""
        from torchcbl.sharing.storage import save

        save(cast("ContextLoop", self), folder, include_backbone=include_backbone)

    def export(self, example: Example | None = None, *, dynamic_batch: bool = True) -> ExportedProgram:
        """Export the loop in eval mode, T steps unrolled; see `torchcbl.sharing.export.export_program`."""
        from torchcbl.sharing.export import export_program

        return export_program(cast("ContextLoop", self), example, dynamic_batch=dynamic_batch)

    def export_onnx(
        self, path: str | PathLike[str], example: Example | None = None, *, dynamic_batch: bool = True
    ) -> Path:
        """Write the loop in eval mode, T steps unrolled, as an ONNX file; see `torchcbl.sharing.export.export_onnx`."""
        from torchcbl.sharing.export import export_onnx

        return export_onnx(cast("ContextLoop", self), path, example, dynamic_batch=dynamic_batch)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        include_backbone: bool = False,
        token: str | bool | None = None,
        endpoint: str | None = None,
        example: Example | None = None,
    ) -> str:
        """Upload what `save` writes and a model card to the hub; see `torchcbl.sharing.hub.push_to_hub`."""
        from torchcbl.sharing.hub import push_to_hub

        return push_to_hub(
            cast("ContextLoop", self),
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            include_backbone=include_backbone,
            token=token,
            endpoint=endpoint,
            example=example,
        )

    @staticmethod
    def from_pretrained(
        source: str | PathLike[str],
        backbone: nn.Module,
        *,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        adapter: AdapterChoice | None = None,
        context: Context | None = None,
        solver: SolverChoice | None = None,
        gradient: GradientChoice | None = None,
        halting: Halting | None = None,
        example: Example | None = None,
    ) -> ContextLoop:
        """Put a loop from the hub, or from a folder, around a backbone; see `torchcbl.sharing.hub.from_pretrained`.

        `solver`, `gradient` and `halting` take the place of those it was saved with, as `torchcbl.load` does; one of
        the caller's own must be passed, since code is never downloaded.
        """
        from torchcbl.sharing.hub import from_pretrained

        return from_pretrained(
            source,
            backbone,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            adapter=adapter,
            context=context,
            solver=solver,
            gradient=gradient,
            halting=halting,
            example=example,
        )
