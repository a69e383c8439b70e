"""The stages of a life as a cached graph that can be interrupted and gone on with; its lineage, history and report."""
