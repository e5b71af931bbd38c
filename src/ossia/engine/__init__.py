"""Tokens ⇄ tokens: from the ids of a prompt to the ids of an answer. No text, no chat format.

`request` (what is asked for; no torch) · `cache`, `paged` (keys, values) · `sampler` (logits → id) · `engine` (loops).
"""
