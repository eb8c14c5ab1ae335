"""Where versions run: in this process, in a process of their own, on a cluster."""
