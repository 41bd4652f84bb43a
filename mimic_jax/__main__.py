"""`python -m mimic_jax VERB …`: see main.py."""

from mimic_jax.main import entry

entry()
