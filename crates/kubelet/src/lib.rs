//! Pod workers, probes, volumes, status, HTTPS server.
