"""The commands, one module each: a function that reads options, calls the library and prints.

The modules import nothing heavy, and a command imports what it needs when it runs, so that `--help` is quick.
"""
