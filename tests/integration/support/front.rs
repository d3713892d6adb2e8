//! Processes in front of a server: a TLS terminator with certificates made by openssl, or a proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::etcd::poll;

/// A process in front of a server. It is killed when this is dropped.
pub struct Front {
    child: Child,
    /// The port it listens on.
    pub port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Front {
    /// Terminates TLS for a server on port `target`. With `client_ca` it requires a client certificate.
    pub fn tls(certificate: &Path, key: &Path, client_ca: Option<&Path>, target: u16) -> Self {
        let none = Path::new("-");
        let paths = [certificate, key, client_ca.unwrap_or(none)];
        Self::start("tls", paths, &target.to_string())
    }

    /// A proxy: `http`, `socks5`, or `https` with a certificate and its key.
    pub fn proxy(kind: &str, certificate: Option<(&Path, &Path)>) -> Self {
        let none = Path::new("-");
        let (certificate, key) = certificate.unwrap_or((none, none));
        Self::start(kind, [certificate, key, none], "-")
    }

    fn start(kind: &str, paths: [&Path; 3], target: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, log) = (folder.path().join("port"), folder.path().join("log"));
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/integration/support/front.py"
        );
        let child = Command::new("python3")
            .arg(script)
            .args([&port, &log])
            .arg(kind)
            .args(paths)
            .arg(target)
            .spawn()
            .expect("python3 starts");
        let port = poll("the front's port", || {
            fs::read_to_string(&port).ok()?.parse().ok()
        });
        Self {
            child,
            port,
            log,
            _folder: folder,
        }
    }

    /// The requests it received, one line each.
    pub fn requests(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
