"""Gradients of solutions, by the implicit function theorem."""
