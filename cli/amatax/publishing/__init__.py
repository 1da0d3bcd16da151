"""Stage 6, show it: a finished folder -> a Hub repository, with a card that says what it is made of."""
