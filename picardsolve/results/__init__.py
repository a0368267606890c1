"""What comes back from a solve: states, costs, rounds, pictures, warnings."""
