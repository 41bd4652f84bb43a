"""A trained model at work: `load` one, let it `predict`; what `mimic predict` and `mimic demo` do is done here."""

from mimic_jax.serving.model import Model, Prediction, load

__all__ = ['Model', 'Prediction', 'load']
