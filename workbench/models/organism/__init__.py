"""The built-in subject: a small transformer trained on a generated corpus whose behaviours have known probabilities."""
