"""The page in the browser: methods side by side on one picture, and a sweep of the budget.

Everything but `page`, `server` and `look` works without gradio.
"""
