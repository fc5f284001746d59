"""Sharing loops on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import nn

from torchcbl import __version__
from torchcbl.adapters import AdapterChoice
from torchcbl.backbone.calls import Example
from torchcbl.context import Context
from torchcbl.halting import Halting
from torchcbl.settings import GradientChoice, SolverChoice
from torchcbl.sharing.card import model_card
from torchcbl.sharing.manifest import CONFIG
from torchcbl.sharing.storage import ADDED, BACKBONE, load

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from torchcbl.loop import ContextLoop

CARD = "README.md"


def push_to_hub(
    net: ContextLoop,
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
    """Upload a loop to the hub: what it adds, how it was built, and a model card, in one commit.

    Args:
        net: The loop.
        repo_id: "user/name", or "name" for a repository of your own. Made if it is not there; its `README.md` is
            replaced.
        private: Whether a repository made here is private; one that is there keeps its visibility.
        revision: The branch to commit to, made if it is not there; None for the main one.
        commit_message: The commit's first line.
        include_backbone: Whether to upload the backbone's own weights too.
        token: An access token with the right to write; None for the one that `hf auth login` stored, False for none.
        endpoint: Address of the hub; None for `HF_ENDPOINT` or https://huggingface.co.
        example: What the model card is measured on; see `torchcbl.sharing.card.model_card`. It is not uploaded.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub or safetensors is not installed.
        ValueError: `repo_id` is not of that form, or the backbone fails on an example that is made up.
        PermissionError: The token is missing, wrong, or may not write there.
        ConnectionError: The hub cannot be reached.
    """
    api = _api(token, endpoint)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not _is_repo_id(repo_id):
        raise ValueError(f"repo_id must be 'user/name' (letters, digits, '-', '_' and '.'), got {repo_id!r}.")
    with TemporaryDirectory() as name, _explained(api, f"cannot push to '{repo_id}'"):
        folder = Path(name)
        net.save(folder, include_backbone=include_backbone)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = model_card(net, repo, include_backbone=include_backbone, example=example)
        (folder / CARD).write_text(card, encoding="utf-8")
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())
        ]
        if not include_backbone and api.file_exists(repo, BACKBONE, revision=revision):
            operations.append(CommitOperationDelete(BACKBONE))
        message = commit_message or "Upload a torchcbl loop"
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return commit.commit_url


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
    """Put a loop from the hub, or from a folder, around a backbone; see `torchcbl.load` for what must agree.

    Args:
        source: A folder that `net.save` wrote, or a repository on the hub, "user/name". A folder comes first.
        backbone: The network to put the loop around.
        revision: Branch, tag or commit of the repository; None for the main branch.
        cache_dir: Where downloads are kept; None for the hub's own cache. What is there is not downloaded again, and
            serves when the hub cannot be reached.
        token: An access token, for private repositories; None for the one that `hf auth login` stored, False for none.
        endpoint: Address of the hub; None for `HF_ENDPOINT` or https://huggingface.co.
        adapter: The adapters' classes or factories when they were not named ones: code is never downloaded.
        context: The context when it had a `map` of its own, for the same reason.
        solver: Another solver than it was saved with.
        gradient: Another gradient rule.
        halting: Another stopping rule.
        example: A batch, where the backbone fails on one that is made up.

    Returns:
        The loop, in the backbone's train or eval mode.

    Raises:
        ImportError: huggingface_hub (for a repository) or safetensors is not installed.
        ValueError: `source` is neither folder nor repository, a file is damaged, or the backbone differs.
        FileNotFoundError: There is no such repository or revision, or it holds no saved loop.
        PermissionError: The repository may not be read with this token.
        ConnectionError: The hub cannot be reached, and the cache does not hold the repository.

    Example:
        >>> import tempfile, torch
        >>> from torchcbl import ContextLoop
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> folder = tempfile.mkdtemp()
        >>> ContextLoop(backbone, sites="1", example=torch.zeros(2, 4)).save(folder)
        >>> net = from_pretrained(folder, backbone)
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(source, revision, cache_dir, _api(token, endpoint))
    elif revision is not None:
        raise ValueError(f"'{source}' is a folder here, which has no revision {revision!r}: leave `revision` out.")
    return load(
        folder,
        backbone,
        adapter=adapter,
        context=context,
        solver=solver,
        gradient=gradient,
        halting=halting,
        example=example,
    )


def _download(
    source: str | PathLike[str], revision: str | None, cache_dir: str | PathLike[str] | None, api: HfApi
) -> Path:
    if not isinstance(source, str) or not _is_repo_id(source):
        raise ValueError(
            f"{str(source)!r} is neither a folder that is there nor the name of a repository on the hub: pass what "
            "net.save(folder) wrote, or 'user/name'."
        )
    with _explained(api, f"cannot load '{source}'", reading=True):
        wanted = [CONFIG, ADDED, BACKBONE]
        cache = None if cache_dir is None else Path(cache_dir)
        folder = Path(api.snapshot_download(source, revision=revision, cache_dir=cache, allow_patterns=wanted))
    if not (folder / ADDED).is_file():
        raise FileNotFoundError(f"'{source}' on {api.endpoint} holds no saved loop: there is no {ADDED} in it.")
    return folder


def _api(token: str | bool | None, endpoint: str | None) -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "sharing on the hub needs huggingface_hub, which is not installed: pip install 'torchcbl[hub]'."
        ) from error
    return HfApi(endpoint=endpoint, token=token, library_name="torchcbl", library_version=__version__)


def _is_repo_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextmanager
def _explained(api: HfApi, what: str, reading: bool = False) -> Iterator[None]:
    """Turn the hub's errors into Python's own, with what to do."""
    # HTTPError of whichever HTTP client this huggingface_hub is built on
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        # when the cache cannot help either, the cause says why the hub could not
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        what = f"{what}: {api.endpoint}"
        if isinstance(cause, HfHubHTTPError):
            explained = _explain_answer(cause, what, reading)
        elif isinstance(cause, (HTTPError, ConnectionError)):
            explained = ConnectionError(
                f"{what} cannot be reached ({type(cause).__name__}: {cause}). Check the network, and that "
                "HF_HUB_OFFLINE is not set."
            )
        else:
            explained = None
        if explained is None:
            raise
        raise explained from error


def _explain_answer(error: HfHubHTTPError, what: str, reading: bool) -> OSError | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = f"HTTP {error.response.status_code}"
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{what} has the repository, but not that revision. Check its name.")
    if status == "HTTP 403" or isinstance(error, GatedRepoError):
        return PermissionError(
            f"{what} does not allow it ({status}). Ask the owner for access, or pass a token=... that has the right to."
        )
    if reading and isinstance(error, RepositoryNotFoundError):  # a hub does not tell strangers what is private
        return FileNotFoundError(
            f"{what} has no such repository that you may read ({status}), and no folder here has that name. Check the "
            "name; for a private repository run `hf auth login` or pass token=...."
        )
    if status == "HTTP 401":
        return PermissionError(
            f"{what} does not know you ({status}). Run `hf auth login`, or pass a token=... that is valid."
        )
    return None
