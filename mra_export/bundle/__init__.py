"""The bundle's format: what its manifest says, and whether its files agree; reads, never writes."""
