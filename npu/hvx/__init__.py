"""Hexagon's vector unit (HVX): decode by table lookup, generated here, emulated here."""
