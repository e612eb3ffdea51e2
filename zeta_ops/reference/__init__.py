"""The definition in plain NumPy: one file for each section, written to be read, not to be fast.

Every backend must agree with these functions: codes and selections exactly, values within rounding.
They work on one row at a time: the queries, keys and values of one head of one sequence.
"""
