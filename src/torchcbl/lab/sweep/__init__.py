"""Sweeps: many settings of one arm, compared on validation data alone, and the choice among them."""
