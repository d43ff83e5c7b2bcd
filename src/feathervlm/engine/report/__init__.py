"""What a pruned forward did: numbers and pictures."""
