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
        width: Channels of the first block; or of all three blocks.
        image_size: Height and width of the images, >= 8: one number, or (H, W) as of spectrograms.
        hidden: Units of the first linear layer.

    Raises:
        ValueError: The images are too small for three poolings.

    Example:
        >>> import torch
        >>> StandardCNN(10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        width: int | tuple[int, int, int] = 16,
        image_size: int | tuple[int, int] = 32,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        height, breadth = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, breadth) < 8:
            raise ValueError(
                f"image_size must be >= 8 (three poolings halve it), got {image_size}: enlarge the images."
            )
        self.widths = (width, 2 * width, 4 * width) if isinstance(width, int) else width
        first, second, third = self.widths
        self.block1 = _block(channels, first)
        self.block2 = _block(first, second)
        self.block3 = _block(second, third)
        self.fc1 = nn.Linear(third * (height // 8) * (breadth // 8), hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to logits (B, K)."""
        return self.head(self.block3(self.block2(self.block1(x))))

    def head(self, h: Tensor) -> Tensor:
        """Map the last block's output (B, C, H / 8, W / 8) to logits (B, K)."""
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
