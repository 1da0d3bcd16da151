"""Side by side with the peer and with this machine's floor, in one run; never a timed test."""
