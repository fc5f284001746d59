"""Adapt a pretrained vision transformer to noisy images by feedback alone: the backbone stays frozen, bit for bit.

Needs transformers and scikit-learn. The stand-in for a pretrained model is trained here on clean handwritten digits.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

import torchcbl as cbl


def fit(step, parameters, x, target, epochs):
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            step(x[batch], target[batch]).backward()
            optimiser.step()


def accuracy(model, x, target):
    with torch.no_grad():
        return (model(x).logits.argmax(1) == target).float().mean().item()


def main(epochs: int = 12) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, target = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    noisy, train, test = x + 0.5 * torch.randn_like(x), slice(0, 1200), slice(1200, None)

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = ViTConfig(**size, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    model = ViTForImageClassification(config).train()  # yours: ViTForImageClassification.from_pretrained(...)
    fit(lambda x, t: F.cross_entropy(model(x).logits, t), model.parameters(), x[train], target[train], epochs)
    before = copy.deepcopy(model.eval().state_dict())

    net = cbl.ContextLoop(model, sites="vit.layers.[01]", example=x[:2], adapter="film", steps=2).freeze_backbone()
    net.print_trainable_parameters()
    fit(
        lambda x, t: cbl.refinement_loss(net.refine(x), t),
        net.adapter_parameters(),
        noisy[train],
        target[train],
        epochs,
    )

    print(f"frozen backbone on noisy test digits: {accuracy(model, noisy[test], target[test]):.1%}")
    print(f"with feedback, T = 2:                 {accuracy(net.eval(), noisy[test], target[test]):.1%}")
    unchanged = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    print("every tensor of the backbone is bit for bit as it was:", unchanged)


if __name__ == "__main__":
    main()
