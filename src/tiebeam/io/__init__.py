"""Connectors: one file per outside system, the only code that talks to the outside."""
