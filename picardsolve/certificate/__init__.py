"""How far a solution may be from the sequential one, and what the rounds tell of it."""
