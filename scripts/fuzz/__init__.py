"""Fuzzing: inputs by the million, with whatever is wrong with them."""
