"""Stage 2, where tensors come from: headers of folders, of legacy .bin files and of Hub repositories. No tensor is read."""
