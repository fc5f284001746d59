"""What the loop adds beyond each control: differences, intervals, probabilities, and a verdict for each."""

from torchcbl.lab.report.beyond.forest import draw_beyond
from torchcbl.lab.report.beyond.gain import overall
from torchcbl.lab.report.beyond.rows import Beyond, Control, beyond
from torchcbl.lab.report.beyond.table import controls_table, markdown, table
from torchcbl.lab.report.beyond.words import bound, sentence, sentences

__all__ = [
    "Beyond",
    "Control",
    "beyond",
    "bound",
    "controls_table",
    "draw_beyond",
    "markdown",
    "overall",
    "sentence",
    "sentences",
    "table",
]
