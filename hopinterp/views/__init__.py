"""Figures, tables and pages of what was found; its modules are imported when they are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["circuits", "graph", "plot", "plots", "tables", "trends"])
