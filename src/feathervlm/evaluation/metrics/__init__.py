"""How answers are scored, as plain functions of an answer and what is right.

They know no model, no runner and no file, so that any harness can call them. Where two protocols differ, `paper` does
what the harness behind the numbers of arXiv 2412.13180 does (TRI-ML/vlm-evaluation), and `symmetric` treats the
predicted and the right answer alike.
"""

from typing import Literal

Protocol = Literal["paper", "symmetric"]
PROTOCOLS: tuple[Protocol, ...] = ("symmetric", "paper")
