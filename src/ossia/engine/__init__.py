"""Tokens ⇄ tokens: from the ids of a prompt to the ids of an answer. No text, no chat format.

`request` (what is asked for and answered; no torch) · `loop` (one request at a time: the definition) · `engine` (many
at once), in its own thread `worker` · `scheduler`, `blocks` (what runs next, on which pages; no torch) · `runner` (the
model's part of a step) · `cache`, `paged` (keys, values) · `prefixes` (kept on disk) · `sampler` (logits → id) ·
`grammar` (what may follow).
"""
