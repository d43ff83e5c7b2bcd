"""Helpers for files, provenance, progress and plots."""
