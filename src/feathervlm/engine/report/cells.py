"""What becomes of a cell of a picture at a stage."""

DROPPED, RUNNING, FROZEN, WAITING = 0, 1, 2, 3
"""The values of `Report.modes`; as bool, the first two say whether a cell is kept."""
