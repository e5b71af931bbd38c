"""Data → harmony → a checkpoint.

`pretrain`, `sft`, `lora` and `rl` are recipes, each read from top to bottom; the other files are their parts.
"""
