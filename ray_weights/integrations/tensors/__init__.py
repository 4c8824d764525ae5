"""Tensors of a torch module as one linear byte space: their layout, and moving them into an arena and back."""
