"""The command line: one file a verb, thin; heavy imports only inside the verb."""
