"""Losses: each an Objective (what to sum and what to divide by), beside pure functions of tensors."""
