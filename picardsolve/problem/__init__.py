"""What is solved: terms, states, grids, tolerances, and calls of the user's function on many rows."""
