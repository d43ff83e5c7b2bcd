"""Probes: how each signal is measured in a running model, one file for each kind."""
