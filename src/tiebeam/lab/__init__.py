"""The lab: services on this machine, one file each, for `tiebeam lab` and for the tests.

Each says how it was found: an address given in the environment, a program on this machine, or one it installs.
What cannot be had raises a ConfigError with the reason.
"""
