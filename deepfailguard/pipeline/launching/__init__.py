"""Who computes boundary distances: this process, several of this machine, or a Ray cluster."""
