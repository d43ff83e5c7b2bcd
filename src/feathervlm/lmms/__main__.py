"""Prints where the task files are: `lmms-eval --include_path "$(python -m feathervlm.lmms)" ...`."""

from feathervlm.lmms import TASKS

if __name__ == "__main__":
    print(TASKS)
