"""Alignment: rewards, rollouts on the engine, preferences and policy gradients, on the one trainer."""
