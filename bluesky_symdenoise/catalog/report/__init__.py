"""Report page, pictures and NeXus files of derived runs."""
