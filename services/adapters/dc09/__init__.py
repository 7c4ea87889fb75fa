"""SIA DC-09: alarm panels that report over IP, by TCP or UDP."""
