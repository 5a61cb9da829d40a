"""Samples as files: one PNG a seed, a record of where they come from, and a way to go on after whatever happens."""

from nearzero.production.job import Guide, Produced, Production, produce

__all__ = ["Guide", "Produced", "Production", "produce"]
