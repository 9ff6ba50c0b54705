"""Every claim of speed, side by side with its peers in one run; `make bench` prints the table."""
