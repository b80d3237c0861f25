"""The parity check: is a candidate the same model as the PyTorch one, and if not, where does it begin to differ and how."""
