"""Questions about images: data sets, phantoms, splits, controls."""
