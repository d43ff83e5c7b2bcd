"""Criteria, which score tokens."""
