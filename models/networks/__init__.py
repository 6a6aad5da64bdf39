"""The networks: modulated UNet, time-aware encoder, autoencoder with CFW, text tower."""
