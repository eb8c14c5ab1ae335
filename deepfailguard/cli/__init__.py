"""The command `deepfailguard`."""
