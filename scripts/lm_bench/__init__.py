"""The parts of bench_lm.py: the loops that are timed, and the table of them."""
