"""Draw completions: prefill once a prompt, then decode."""
