"""Quantizers: pure solvers of one matrix, and the walk that applies them to a model."""
