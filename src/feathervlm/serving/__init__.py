"""Serving with engines that run the model themselves: which methods they can use, and which tokens stay where."""
