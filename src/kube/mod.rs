//! Pods from a Kubernetes API server, or from a file that `kubectl` wrote.
