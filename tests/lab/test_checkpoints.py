from pathlib import Path

import pytest
import torch

from torchcbl.lab.checkpoints import DurableCheckpointIO, usable_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.ckpt"
    DurableCheckpointIO().save_checkpoint({"weights": torch.arange(1000.0), "epochs": [1, 2]}, path)
    return path


def test_a_checkpoint_reads_back(saved: Path) -> None:
    assert usable_checkpoint(saved) == saved
    loaded = DurableCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["weights"], torch.arange(1000.0))
    assert loaded["epochs"] == [1, 2]
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.ckpt"]


def test_no_checkpoint_is_no_warning(tmp_path: Path) -> None:
    assert usable_checkpoint(tmp_path / "checkpoint.ckpt") is None


def test_a_checkpoint_cut_short_is_warned_about_and_not_used(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.warns(RuntimeWarning, match=r"checkpoint\.ckpt is damaged .* this run starts anew"):
        assert usable_checkpoint(saved) is None


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    place = content.find(torch.tensor(500.0).numpy().tobytes())
    content[place] ^= 1
    saved.write_bytes(content)
    assert torch.load(saved)["weights"][500] != 500.0, "torch itself does not notice"
    with pytest.warns(RuntimeWarning, match="fails its checksum"):
        assert usable_checkpoint(saved) is None


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.ckpt"
    torch.save({"trap": _Trap(tmp_path / "sprung")}, path)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert usable_checkpoint(path) is None
    assert not (tmp_path / "sprung").exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
