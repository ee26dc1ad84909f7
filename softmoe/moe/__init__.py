"""Mixture-of-experts layers: routers, experts, dispatch."""
