"""Criteria: what a token is worth."""
