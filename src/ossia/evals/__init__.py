"""Measuring a model through the engine. `heldout`: the bundled model's own exercises, on prompts no training saw."""
