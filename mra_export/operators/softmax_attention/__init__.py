"""Softmax attention (Vaswani et al., 2017), which files hold as standard operators."""
