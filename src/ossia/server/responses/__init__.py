"""/v1/responses: what is asked becomes a turn, what is said becomes items and events, and both are kept.

`request` (what may be asked) · `items` (in) · `history` (earlier turns) · `draft`, `events` (items and events out)
· `objects` (the shapes of both) · `run` (one in the making, whoever listens) · `routes`.
"""
