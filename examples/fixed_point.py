"""Train a loop at its fixed point, in two ways that keep it there, and see that it settles.

    pip install 'torchcbl[lab]'
    python examples/fixed_point.py

Each digit's refinement runs until it stops moving; the gradient is the implicit function theorem's, so memory does not
grow with the steps. `bounded` is a contraction by construction, `penalised` is only kept near one.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import torchcbl as cbl
from torchcbl.theory import jacobian_penalty


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def main(epochs: int = 8) -> None:
    digits = load_digits()
    x, target = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    train, test = torch.arange(1200), torch.arange(1200, len(x))
    for name in ("bounded", "penalised"):
        torch.manual_seed(0)
        net = cbl.ContextLoop(
            classifier(), "5", x[:2], "additive", steps=30,
            solver="anderson", gradient="implicit", halting=cbl.Tolerance(1e-4),
        )  # fmt: skip
        if name == "bounded":
            cbl.make_contractive(net, gamma=0.9)
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(epochs):
            for batch in train[torch.randperm(len(train))].split(64):
                loss = cbl.refinement_loss(net.refine(x[batch]), target[batch], weights="last")
                if name == "penalised":
                    loss = loss + 0.1 * jacobian_penalty(net, x[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            r = net.eval().refine(x[test])
        right = (r.output.argmax(1) == target[test]).float().mean()
        print(f"{name}: {r}\n  test accuracy {right:.1%} after {r.evaluations.float().mean():.1f} evaluations")
        report = cbl.contraction(net, x[test[:64]])
        print(report, report.recommend(), sep="\n")


if __name__ == "__main__":
    main()
