"""The parts of bench_rl.py: environments alone, and whole training runs."""
