"""Put feedback into a BERT classifier and train it on real text: from which module does a line of documentation come?

Needs transformers. The texts are the documentation of Python's own library; the tokens are their bytes.
"""

import inspect
import pydoc

import torch
from transformers import BertConfig, BertForSequenceClassification

import torchcbl as cbl

LENGTH, MODULES = 64, ("argparse", "decimal", "email.message", "random", "typing")


def lines(module):
    """All distinct lines of some length in the documentation of a module."""
    text = pydoc.plain(pydoc.render_doc(module)).splitlines()
    return sorted({inspect.cleandoc(line.strip(" |")) for line in text if len(line.strip(" |")) > 30})


def encode(texts):
    rows = [list(text.encode()[:LENGTH]) for text in texts]
    ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def main(epochs: int = 8) -> None:
    torch.manual_seed(0)
    texts = [(line, label) for label, module in enumerate(MODULES) for line in lines(module)]
    order = torch.randperm(len(texts)).tolist()
    batch, labels = encode([texts[i][0] for i in order]), torch.tensor([texts[i][1] for i in order])
    cut = len(order) * 4 // 5

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(**size, vocab_size=256, num_labels=len(MODULES)))
    example = {name: value[:2] for name, value in batch.items()}
    net = cbl.ContextLoop(model, sites="bert.encoder.layer.[01]", example=example, adapter="attention", steps=2)
    print(net)

    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(cut).split(32):
            optimiser.zero_grad()
            net(**{name: value[rows] for name, value in batch.items()}, labels=labels[rows]).loss.backward()  # from y_T
            optimiser.step()
    with torch.no_grad():
        r = net.eval().refine(**{name: value[cut:] for name, value in batch.items()})
    for tau, output in enumerate(r.outputs):
        print(f"held-out accuracy at step {tau}: {(output.argmax(1) == labels[cut:]).float().mean():.1%}")


if __name__ == "__main__":
    main()
