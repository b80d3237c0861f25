"""The verbs: what the commands do, one to a module."""
