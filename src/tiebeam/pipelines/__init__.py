"""Runnable graphs: one file each, with Options, build() and run()."""
