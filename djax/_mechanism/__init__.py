"""What a mechanism is: a value that averages, and can be asked how."""
