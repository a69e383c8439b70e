"""Code that nobody trusts, in a process of its own, within limits of time, memory, files and network."""
