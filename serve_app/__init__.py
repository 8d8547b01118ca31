"""A chat backend on Ray Serve: gateway replicas in front, vLLM engine cores behind, a fleet client between."""
