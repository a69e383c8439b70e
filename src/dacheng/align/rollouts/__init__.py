"""Rollouts: answers of the policy to prompts, written by our engine, here or in processes of their own."""

from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.inline import InlineWorker
from dacheng.align.rollouts.worker import Health, Worker

__all__ = ["Ask", "Health", "InlineWorker", "Sampling", "Worker"]
