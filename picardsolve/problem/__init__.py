"""What is solved: terms, states, grids, tolerances, and calls of the user's functions for many rows."""
