"""Speed of ZETA attention against dense and local attention, end to end: `python -m benchmarks.speed --help`."""
