"""`user_script.py` is read by the type checker and is no test."""

collect_ignore = ["user_script.py"]
