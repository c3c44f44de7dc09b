"""Real servers and a network that misbehaves on demand, for the tests of every layer."""
