"""Attacks in an L_inf ball on pixels, through the whole unrolled loop.

They are the laboratory's own since those of libraries attack one output and know no labels: here an attack may aim at
any step or at all of them, an oracle is told the labels, and what is drawn for an image depends on its index alone. The
tests hold them against the Adversarial Robustness Toolbox and against exact optima.
"""
