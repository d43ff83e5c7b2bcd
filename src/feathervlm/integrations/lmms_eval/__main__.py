"""Prints where the task files are: `lmms-eval --include_path "$(python -m feathervlm.integrations.lmms_eval)" ...`."""

from feathervlm.integrations.lmms_eval import TASKS

if __name__ == "__main__":
    print(TASKS)
