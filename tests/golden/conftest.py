# The script needs torch; collecting doctests would import it.
collect_ignore = ["make_golden.py"]
