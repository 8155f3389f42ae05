//! Clusters in network namespaces, real clients, test images.
