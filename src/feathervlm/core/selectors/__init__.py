"""Selectors, which decide which tokens stay."""
