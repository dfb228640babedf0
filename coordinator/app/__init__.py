"""One run, put together and driven: demo, local device, embedded broker, bundle mirror."""
