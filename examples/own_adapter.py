"""Write an adapter of your own, check that it is live, train it, save it and load it again.

pip install 'torchcbl[lab]'
python examples/own_adapter.py
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torchcbl as cbl


class Sharpen(cbl.Adapter):
    """h' = h * (1 + a(z) (h / rms(h) - 1)): with a > 0 large activations grow and small ones shrink; a(z) = W z."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__(site, context_dim)
        self.amount = nn.Linear(context_dim, site.channels, bias=False)
        nn.init.zeros_(self.amount.weight)  # starts as the identity

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        size = h.square().mean(dim=self.site.channel_dim, keepdim=True).add(1e-6).sqrt()
        return h * (1 + self.per_channel(self.amount(z), h) * (h / size - 1))


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip


def main(epochs: int = 5) -> None:
    digits = load_digits()
    x, target = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    net = cbl.ContextLoop(backbone(), sites=["1", "3"], example=x[:2], adapter=Sharpen, steps=2)
    print(net.audit())  # live by gradient and by perturbation, or it would have been refused

    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(64):
            optimiser.zero_grad()
            cbl.refinement_loss(net.refine(x[batch]), target[batch]).backward()
            optimiser.step()
    net.eval()
    print(f"test accuracy: {(net(x[1200:]).argmax(1) == target[1200:]).float().mean():.1%}")

    folder = tempfile.mkdtemp()
    net.save(folder, include_backbone=True)
    again = cbl.load(folder, backbone().eval(), adapter=Sharpen)  # code is never read from a file
    print("loaded again, it answers alike:", torch.equal(again(x[:64]), net(x[:64])))


if __name__ == "__main__":
    main()
