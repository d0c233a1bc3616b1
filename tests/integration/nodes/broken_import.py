"""A plugin that doesn't import."""

raise RuntimeError("this plugin is broken on purpose")
