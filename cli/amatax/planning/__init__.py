"""Stage 3, what will happen: every tensor's place and ratio, the output's layout, and every fault, from headers alone."""
