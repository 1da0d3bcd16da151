"""Recipe -> Recipe: distilling the proxy set, and block ratios by maximum likelihood (AMA, arXiv 2309.06256)."""
