"""The part of the ground floor that may import torch: shared by learner, samplers and verifiers."""
