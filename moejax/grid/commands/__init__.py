"""The commands of `experiments/grid.py`, one module each, with `main(arguments) -> exit code`."""
