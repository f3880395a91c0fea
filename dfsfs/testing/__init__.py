"""Beside the house: twins of the world, the simulation, tools for tests. Nobody imports it."""
