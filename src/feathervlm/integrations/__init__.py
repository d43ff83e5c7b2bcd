"""Connections to other projects: lmms-eval, and the checkpoints of the paper (Prismatic)."""
