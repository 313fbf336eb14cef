"""The policy: everything that knows Qwen2-VL and Qwen2.5-VL. Start at policy.py."""
