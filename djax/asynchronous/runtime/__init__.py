"""Workers that never wait, in real time."""
