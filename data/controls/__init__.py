"""Questions altered so that an answer by guessing shows."""
