"""YOSO attention (Zeng et al., 2021): weights by the collisions of hash codes, or their expectation."""
