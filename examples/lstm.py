"""Feedback into an LSTM that reads handwritten digits row by row, some of them cut short.

    pip install 'torchcbl[lab]'
    python examples/lstm.py

The site is the lower LSTM: its outputs are refined, packed sequences and states are left as they are.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchcbl as cbl


class Reader(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.lower = nn.LSTM(8, width, batch_first=True)
        self.upper = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.upper(self.lower(packed)[0])
        return self.head(last[-1])


def main(epochs: int = 12) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, target = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    lengths = torch.randint(5, 9, (len(x),))  # rows that are read
    train, test = torch.arange(1200), torch.arange(1200, len(x))

    net = cbl.ContextLoop(Reader(), sites="lower", example=(x[:2], lengths[:2]), adapter="recurrent", steps=2)
    print(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimiser.zero_grad()
            cbl.refinement_loss(net.refine(x[batch], lengths[batch]), target[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        r = net.eval().refine(x[test], lengths[test], steps=4)
    print(r)
    for tau, output in enumerate(r.outputs):
        print(f"test accuracy at step {tau}: {(output.argmax(1) == target[test]).float().mean():.1%}")


if __name__ == "__main__":
    main()
