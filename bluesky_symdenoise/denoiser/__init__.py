"""The pretrained network and its use on frames. torch lives here and in training."""
