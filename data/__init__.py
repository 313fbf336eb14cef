"""Data sets, one `VQAExample` for all of them."""
