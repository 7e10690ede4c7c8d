"""The pretrained network and its application to frames. Only this package and training use torch."""
