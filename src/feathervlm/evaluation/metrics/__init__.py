"""Scores of answers, as plain functions of texts and boxes that any harness can call.

Where two protocols differ, `paper` scores as the harness of arXiv 2412.13180 does (TRI-ML/vlm-evaluation), and
`symmetric` treats the predicted and the right answer alike.
"""

from typing import Literal

Protocol = Literal["paper", "symmetric"]
PROTOCOLS: tuple[Protocol, ...] = ("symmetric", "paper")
