"""SNMP: environment monitors, leak ropes, UPSs and door contacts that send traps and informs."""
