"""Measures of models, and the reward-tax front."""
