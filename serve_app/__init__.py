"""A chat backend on Ray Serve: gateways in front, vLLM engine cores behind, a fleet client between."""
