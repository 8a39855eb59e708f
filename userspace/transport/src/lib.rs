//! Connections between nodes: TLS 1.3 with certificates of the cluster on both sides.
