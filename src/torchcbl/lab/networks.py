"""The networks that are compared: plain modules that know nothing of feedback."""

from __future__ import annotations

from torch import Tensor, nn


class StandardCNN(nn.Module):
    """Classify images with eight layers: six 3x3 convolutions in three blocks, then two linear layers.

    Each block is (convolution, batch norm, ReLU) twice and a 2x2 max-pooling. The blocks are `width`, 2 `width`
    and 4 `width` channels wide; the arms put feedback at all three: `block1`, `block2`, `block3`.

    Args:
        num_classes: K, the number of outputs.
        channels: Channels of the images.
        width: Channels of the first block.
        image_size: Height and width of the images, >= 8: one number, or (H, W) as of spectrograms.

    Raises:
        ValueError: The images are too small for three poolings.

    Example:
        >>> import torch
        >>> StandardCNN(10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, width: int = 16, image_size: int | tuple[int, int] = 32
    ) -> None:
        super().__init__()
        height, breadth = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, breadth) < 8:
            raise ValueError(
                f"image_size must be >= 8 (three poolings halve it), got {image_size}: enlarge the images."
            )
        self.block1 = _block(channels, width)
        self.block2 = _block(width, 2 * width)
        self.block3 = _block(2 * width, 4 * width)
        self.fc1 = nn.Linear(4 * width * (height // 8) * (breadth // 8), 256)
        self.fc2 = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to logits (B, K)."""
        h: Tensor = self.block3(self.block2(self.block1(x)))
        y: Tensor = self.fc2(self.fc1(h.flatten(1)).relu())
        return y


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolve twice and pool; the convolutions have no bias, since batch norm would take it out again."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
