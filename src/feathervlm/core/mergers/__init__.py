"""Mergers, which add the tokens that do not stay to tokens that stay."""
