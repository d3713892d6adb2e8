//! Tests of the program against real stores and a stand-in Kubernetes API server.
//!
//! Where a test belongs: tests of the core's decisions are next to the code in `src`. Here,
//! - a mapping, a rule or a message in the output of a run: a folder in `fixtures/scenarios` (`scenarios`);
//! - servers that must not be deleted: `losses`, and an event of `model::world` or a check of `model`;
//! - the Kubernetes API: answers and connections `kube`, credentials `kubeconfig` and `credentials`, TLS `tls`, proxies
//!   `proxies`;
//! - stores: the contract of all and the particulars of each `stores`, etcd's TLS and users and what is not etcd `etcd`,
//!   lost members, lost answers, concurrent runs and signals `faults`, directories of etcd v2 `directories`, files
//!   `files`;
//! - Traefik: `traefik*`; vulcand's definitions are tested in `src/layout`;
//! - the contents of a store: `contents`; the commands that findings print: `repairs`;
//! - the command line: `options`, `looks`, `messages`, `stdin`; documents: `docs`, `recipes`, `predecessors`;
//! - deployment: `manifest`, `operations`, `image`, `metrics`;
//! - cost in instructions: `cost`; decoders with hostile input: `fuzz`.

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
