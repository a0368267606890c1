"""What a solve returns: states, costs, rounds, plots, warnings."""
