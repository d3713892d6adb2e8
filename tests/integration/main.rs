//! The real program against real stores and a stand-in Kubernetes API server.
//!
//! Where a new test goes: what the core decides is tested beside it in `src`. Here,
//! - a mapping, a rule, a message as a whole run shows it: a folder in `fixtures/scenarios` (`scenarios`);
//! - what a backend must not lose: `losses`, and an event of `model::world` or a check of `model`;
//! - the API server, what it answers and what it does to connections: `kube`; who we are to it: `kubeconfig`,
//!   `credentials`; the way there: `tls`, `proxies`;
//! - etcd: what all stores do alike and the kinds of stores `stores`, versions and users `etcd`, members and wires that fail `faults`,
//!   `weather`, directories of v2 `directories`; files that a run replaces `files`;
//! - the proxies: `traefik*`; vulcand's definitions are tested in `src/layout`;
//! - the command line: `options`, `looks`, `messages`, `reach`, `stdin`; documents and recipes: `docs`, `recipes`,
//!   `predecessors`; deployment: `manifest`, `operations`, `image`, `metrics`;
//! - cost, by instructions: `cost`; decoders with hostile input: `fuzz`.

#![expect(
    unreachable_pub,
    reason = "modules of one test binary: nothing is exported"
)]

mod contents;
mod cost;
mod credentials;
mod directories;
mod docs;
mod etcd;
mod faults;
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
mod repairs;
mod scenarios;
mod stdin;
mod stores;
mod support;
mod tls;
mod traefik;
mod traefik_references;
mod traefik_servers;
mod weather;
