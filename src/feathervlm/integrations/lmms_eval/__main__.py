"""Print the directory of the task files.

lmms-eval --include_path "$(python -m feathervlm.integrations.lmms_eval)" ...
"""

from feathervlm.integrations.lmms_eval import TASKS

if __name__ == "__main__":
    print(TASKS)
