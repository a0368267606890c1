"""The sliding window: a fixed-point iteration over many steps of a grid at once."""
