"""Experiments: each a function of data, budget and seeds."""
