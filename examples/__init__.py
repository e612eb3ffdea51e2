"""Examples that are complete programs: `python -m examples.recall`."""
