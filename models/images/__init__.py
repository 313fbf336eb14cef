"""Image features: computed once by the frozen tower, kept, and prepared ahead."""
