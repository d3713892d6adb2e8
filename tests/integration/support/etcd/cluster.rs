//! A cluster of three etcd servers.

use std::process::Command;

use super::{Etcd, Settings, Version};

/// Three members of one cluster.
pub struct Cluster {
    members: Vec<Etcd>,
}

impl Cluster {
    /// Starts a cluster of this version.
    pub fn start(version: Version) -> Self {
        Self {
            members: Etcd::cluster(version, &Settings::default()),
        }
    }

    /// Its endpoints, as `--etcd` takes them.
    pub fn urls(&self) -> String {
        let urls = self.members.iter().map(Etcd::url);
        urls.collect::<Vec<_>>().join(",")
    }

    /// Runs `etcdctl` against all members; `None` if it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.urls(), "--command-timeout", "10s"])
            .args(arguments)
            .output()
            .expect("etcdctl starts: run `tests/setup`");
        let out = String::from_utf8(output.stdout).expect("UTF-8");
        output.status.success().then_some(out)
    }

    /// Sends a member a signal by name.
    pub fn signal(&self, member: usize, name: &str) {
        self.members[member].signal(name);
    }
}
