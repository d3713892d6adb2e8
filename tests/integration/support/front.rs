//! What may stand in front of a server: its TLS side with any certificate that openssl makes, or a proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::etcd::poll;

/// A process in front of a server. It ends with the test.
pub struct Front {
    child: Child,
    /// Where it listens.
    pub port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Front {
    /// The TLS side of a server that listens at `target`. With `client_ca` it wants a client certificate.
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

    /// What it was asked, a line each.
    pub fn asked(&self) -> Vec<String> {
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
