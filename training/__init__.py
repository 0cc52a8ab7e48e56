"""Everything that happens on the device: data, recipes and the engine. No web framework in here."""
