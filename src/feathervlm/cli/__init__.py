"""The commands, one module each: a function that reads options, calls the library and prints.

What is heavy to import is imported when a command runs, so that `--help` stays quick.
"""
