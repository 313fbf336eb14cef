"""`python -m models.pretrain_phantom`: how the shipped model was made."""
