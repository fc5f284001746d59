import pytest
import torch
from torch import nn

from torchcbl.lab.networks import StandardCNN


def test_eight_layers_of_the_stated_widths() -> None:
    net = StandardCNN(10, channels=3, width=16)
    convolutions = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    linears = [part for part in net.modules() if isinstance(part, nn.Linear)]
    assert [part.out_channels for part in convolutions] == [16, 16, 32, 32, 64, 64]
    assert all(part.kernel_size == (3, 3) for part in convolutions)
    assert [part.out_features for part in linears] == [256, 10]


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 32, 10), (3, 20, 7)])
def test_shapes(channels: int, size: int, classes: int) -> None:
    net = StandardCNN(classes, channels, width=4, image_size=size)
    x = torch.randn(5, channels, size, size)
    assert net(x).shape == (5, classes)
    assert net.block2(net.block1(x)).shape == (5, 8, size // 4, size // 4)


def test_memory_format_changes_no_more_than_rounding() -> None:
    net = StandardCNN(10, width=4).eval()
    x = torch.randn(2, 3, 32, 32)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x), net(last), rtol=1e-4, atol=1e-5)


def test_images_too_small_to_pool_three_times() -> None:
    with pytest.raises(ValueError, match=r"image_size must be >= 8 .* got 7"):
        StandardCNN(10, image_size=7)
