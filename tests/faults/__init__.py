"""The fault campaign: real runs are killed, pre-empted, starved and damaged, and must come to the same result.

python -m tests.faults [--short] [--only NAME …] [--seed N] [--out FILE]
"""
