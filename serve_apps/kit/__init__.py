"""What every dialect is made of: the call, credentials, envelopes, errors, streams."""
