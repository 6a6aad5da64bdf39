"""Training of StableSR: autoencoder, prior, guidance (encoder and modulation), feature wrapping."""
