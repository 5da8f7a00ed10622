"""Workers that never wait, simulated exactly on virtual clocks."""
