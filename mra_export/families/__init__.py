"""The families of models: what is particular to each is in one module here, and nowhere else.

A module of this package whose name does not begin with an underscore holds one family, as its `FAMILY`. Nothing else has to be
registered: the commands find it by the `model_type` of a configuration, or by what an exported file says of itself.
"""
