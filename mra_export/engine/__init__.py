"""Everything of TensorRT: the backend, the plugin, the network, the engine and its manifest."""
