//! Built-in container runtime: images, snapshots, sandboxes, shim.
