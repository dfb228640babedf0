"""Messages to and from the agents of a fleet: link, registry, task dispatcher, orphaned results, blob server."""
