"""Mergers: what becomes of the tokens that leave."""
