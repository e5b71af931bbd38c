"""Tokens → logits. `transformer` is the architecture, whole; the other files are its leaves and its storage."""
