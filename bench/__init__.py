"""The benchmarks: `python -m bench` measures and prints ratios, each side in its own process."""
