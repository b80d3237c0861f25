"""MRA-2 attention (Zeng et al., 2022): full resolution on the blocks that matter most, block means elsewhere."""
