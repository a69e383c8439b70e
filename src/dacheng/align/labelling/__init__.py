"""Pairs of replies that people compare by hand: what is shown to whom, what they said, and how far they agree."""
