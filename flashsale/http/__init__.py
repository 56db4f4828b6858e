"""The HTTP door: routes that turn into the same requests that come over TCP. Needs the extra `http`."""
