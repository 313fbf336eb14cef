"""The policy: everything that knows Qwen2-VL. Start at policy.py."""
