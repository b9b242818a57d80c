"""The functions behind ``nn.functional``, by subject, and the checks that they share."""
