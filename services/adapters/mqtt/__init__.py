"""Takes in what devices publish on MQTT brokers: the gateway's own, or anybody else's."""
