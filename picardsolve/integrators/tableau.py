"""What a Runge-Kutta method is: the weights of its stages."""

from typing import TypeAlias

# rows of a below the diagonal, then the weights b (Hairer, Norsett & Wanner 1993, table II.1.2)
Tableau: TypeAlias = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]


def nodes(tableau: Tableau) -> list[float]:
    """Where in a step each stage is, from 0 to 1."""
    return [0.0, *(sum(a) for a in tableau[0])]
