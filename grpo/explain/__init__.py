"""`python train.py --explain`: one step as equations with its numbers."""
