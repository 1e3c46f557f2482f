"""The station: cameras, triggers, the inspection loop, the journal and MQTT."""
