//! The real program against real stores and a stand-in Kubernetes API server.

#![expect(
    unreachable_pub,
    reason = "modules of one test binary: nothing is exported"
)]

mod contents;
mod cost;
mod credentials;
mod directories;
mod docs;
mod files;
mod fuzz;
mod image;
mod kube;
mod kubeconfig;
mod looks;
mod losses;
mod main_job;
mod manifest;
mod messages;
mod metrics;
mod model;
mod operations;
mod options;
mod predecessors;
mod proxies;
mod reach;
mod recipes;
mod scenarios;
mod stdin;
mod store;
mod stores;
mod support;
mod tls;
mod traefik;
mod traefik_references;
mod traefik_servers;
mod weather;
