"""HopBench: models of the k-hop task whose circuit is known, and how often a tool reads it right."""
