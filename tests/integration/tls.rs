//! Certificates of many kinds, made by openssl: the program accepts those that kubectl and etcdctl accept.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::api::{Api, Reply};
use crate::support::certs::Leaf;
use crate::support::etcd::{Etcd, Settings, Version};
use crate::support::front::Front;
use crate::support::program::{kubectl, vulcanized};

/// A CA and a server certificate signed by it: `ca.key`, `ca.crt`, `srv.key`, `srv.crt`.
const P256: &str = "ecparam -name prime256v1 -genkey -noout -out ca.key
    req -x509 -new -key ca.key -subj /CN=ca -days 2 -addext basicConstraints=critical,CA:TRUE -out ca.crt
    ecparam -name prime256v1 -genkey -noout -out srv.key
    req -new -key srv.key -subj /CN=s -out srv.csr
    x509 -req -in srv.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile srv.ext -out srv.crt";

/// A client certificate signed by that CA: `cli.key`, `cli.crt`.
const CLIENT: &str = "ecparam -name prime256v1 -genkey -noout -out cli.key
    req -new -key cli.key -subj /CN=admin -out cli.csr
    x509 -req -in cli.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile cli.ext -out cli.crt";

/// A folder of certificates.
struct Files(tempfile::TempDir);

impl Files {
    /// Runs each line as an openssl command, and lines with `cat` or `sed` as they are.
    fn make(steps: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).expect("it is written");
        };
        let server = "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=";
        write("srv.ext", &format!("{server}IP:127.0.0.1,DNS:localhost\n"));
        write("other.ext", &format!("{server}IP:127.0.0.2\n"));
        write(
            "cli.ext",
            "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n",
        );
        write("none.ext", "");
        write(
            "broken.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        write(
            "garbage.crt",
            "-----BEGIN CERTIFICATE-----\n?*!\n-----END CERTIFICATE-----\n-----BEGIN X-----\nAAAA\n-----END X-----\n",
        );
        for step in steps.lines().map(str::trim).filter(|step| !step.is_empty()) {
            let command = match step.split_once(' ') {
                Some(("cat" | "sed", _)) => step.to_owned(),
                _ => format!("openssl {step}"),
            };
            let output = Command::new("sh")
                .args(["-ec", &command])
                .current_dir(folder.path())
                .output()
                .expect("a shell runs");
            assert!(output.status.success(), "{command}: {output:?}");
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect(name)
    }
}

fn pods() -> Value {
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "10" }, "items": [{
        "metadata": { "name": "web-1", "namespace": "default", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 8080, "protocol": "TCP" }] }] },
        "status": { "phase": "Running", "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }],
            "conditions": [{ "type": "Ready", "status": "True" }] },
    }] })
}

/// Runs the program and kubectl against an API server with `srv.crt` and `srv.key`, trusting `ca`. With `client_auth`
/// the server requires a client certificate. Returns the program's stderr, or `None` if it listed the pods. kubectl
/// must have the same outcome; with `stricter` it may succeed where the program fails.
fn kubernetes(
    files: &Files,
    ca: &str,
    client: Option<[&str; 2]>,
    client_auth: bool,
    stricter: bool,
) -> Option<String> {
    let api = Api::start(|_, _| Reply::json(200, &pods()));
    let port = api
        .url()
        .rsplit(':')
        .next()
        .expect("a port")
        .parse()
        .expect("a port");
    let client_ca = files.path("ca.crt");
    let front = Front::tls(
        &files.path("srv.crt"),
        &files.path("srv.key"),
        client_auth.then_some(client_ca.as_path()),
        port,
    );
    let user = match client {
        Some([certificate, key]) => json!({
            "client-certificate": files.path(certificate), "client-key": files.path(key)
        }),
        None => json!({ "token": "t" }),
    };
    let server = format!("https://127.0.0.1:{}", front.port);
    let cluster = json!({ "server": server, "certificate-authority": files.path(ca) });
    let kubeconfig = api.kubeconfig(&cluster, &user);
    let theirs = kubectl(kubeconfig.path()).output().expect("kubectl runs");
    let store = files.path("store.json");
    fs::write(
        &store,
        r#"{"/vulcand/backends/web/backend":"{\"Type\":\"http\"}"}"#,
    )
    .expect("it is written");
    let ours = vulcanized("--owner t --dry-run --timeout 20s --store-file")
        .arg(&store)
        .kubeconfig(&kubeconfig)
        .run();
    let listed = ours.code == 0 && ours.out.contains("1 to create");
    assert!(
        listed == theirs.status.success() || stricter && !listed,
        "{ca} {client:?}: kubectl: {}\n{ours}",
        String::from_utf8_lossy(&theirs.stderr)
    );
    (!listed).then_some(ours.err)
}

#[test]
fn server_certificates_that_kubectl_accepts() {
    let variant = |from: &str, to: &str| P256.replace(from, to);
    let self_signed = "req -x509 -newkey rsa:2048 -nodes -keyout srv.key -subj /CN=api -days 2 -addext \
                       basicConstraints=critical,CA:TRUE -addext subjectAltName=IP:127.0.0.1 -out srv.crt";
    let rsa = variant(
        "ecparam -name prime256v1 -genkey -noout -out",
        "genrsa -out",
    );
    let ed25519 = variant(
        "ecparam -name prime256v1 -genkey -noout -out srv.key",
        "genpkey -algorithm ed25519 -out srv.key",
    );
    for (name, steps, ca) in [
        ("P-256", P256.to_owned(), "ca.crt"),
        (
            "a server key on P-521",
            variant(
                "prime256v1 -genkey -noout -out srv",
                "secp521r1 -genkey -noout -out srv",
            ),
            "ca.crt",
        ),
        (
            "a CA on P-521",
            variant(
                "prime256v1 -genkey -noout -out ca",
                "secp521r1 -genkey -noout -out ca",
            ),
            "ca.crt",
        ),
        ("all on P-384", variant("prime256v1", "secp384r1"), "ca.crt"),
        (
            "P-256 with SHA-512",
            variant("-days 2", "-days 2 -sha512"),
            "ca.crt",
        ),
        (
            "P-256 with SHA-384",
            variant("-days 2", "-days 2 -sha384"),
            "ca.crt",
        ),
        (
            "P-384 with SHA-256",
            variant("prime256v1", "secp384r1").replace("-days 2", "-days 2 -sha256"),
            "ca.crt",
        ),
        ("RSA", rsa.clone(), "ca.crt"),
        (
            "RSA with SHA-512",
            rsa.replace("-days 2", "-days 2 -sha512"),
            "ca.crt",
        ),
        ("Ed25519", ed25519, "ca.crt"),
        (
            "self-signed, a CA, and trusted",
            self_signed.to_owned(),
            "srv.crt",
        ),
        (
            "self-signed, no CA, and trusted",
            self_signed.replace("CA:TRUE", "CA:FALSE"),
            "srv.crt",
        ),
        (
            "the server's own certificate as CA",
            P256.to_owned(),
            "srv.crt",
        ),
        (
            "a bundle with a broken certificate at the end",
            format!("{P256}\ncat ca.crt broken.crt > all"),
            "all",
        ),
        (
            "a bundle with a broken certificate at the start",
            format!("{P256}\ncat garbage.crt broken.crt ca.crt > all"),
            "all",
        ),
        (
            "a bundle with text and other blocks",
            format!("{P256}\nx509 -in ca.crt -text -out text\ncat srv.key text > all"),
            "all",
        ),
    ] {
        let failure = kubernetes(&Files::make(&steps), ca, None, false, false);
        assert_eq!(failure, None, "{name}");
    }
}

#[test]
fn server_certificates_that_kubectl_rejects() {
    let untrusted = "is signed by a CA that is not trusted: give its CA as `certificate-authority` in the kubeconfig";
    for (name, steps, ca, message) in [
        (
            "another CA of the same name",
            format!(
                "{P256}\n{}",
                P256.lines()
                    .take(2)
                    .collect::<Vec<_>>()
                    .join("\n")
                    .replace(" ca.", " bad.")
                    .replace("-out ca", "-out bad")
            ),
            "bad.crt",
            untrusted,
        ),
        (
            "its own certificate, for another name",
            P256.replace("srv.ext", "other.ext"),
            "srv.crt",
            "its certificate is for another name",
        ),
        (
            "its own certificate, expired",
            P256.replace("-days 2 -extfile", "-days -1 -extfile"),
            "srv.crt",
            "its certificate is not valid",
        ),
        (
            "another certificate of the same CA is trusted",
            format!("{P256}\n{CLIENT}"),
            "cli.crt",
            untrusted,
        ),
        (
            "no certificate at all",
            format!("{P256}\ncat srv.key > all"),
            "all",
            "it holds no PEM block `CERTIFICATE`",
        ),
        (
            "no readable certificate",
            format!("{P256}\ncat broken.crt > all"),
            "all",
            "none of its blocks `CERTIFICATE` can be read",
        ),
    ] {
        let failure = kubernetes(&Files::make(&steps), ca, None, false, false).expect(name);
        assert!(failure.contains(message), "{name}: {failure}");
        assert!(!failure.contains("client certificate"), "{name}: {failure}");
    }
}

/// kubectl accepts RSA keys of 1024 bits, which are too short to be secure: `docs/security.md`.
#[test]
fn short_rsa_keys_are_rejected_with_a_readable_error() {
    let steps = P256.replace(
        "ecparam -name prime256v1 -genkey -noout -out ca.key",
        "genrsa -out ca.key 1024",
    );
    let failure = kubernetes(&Files::make(&steps), "ca.crt", None, false, true).expect("refused");
    assert!(
        failure.contains("certificate") && !failure.contains('['),
        "{failure}"
    );
}

#[test]
fn client_certificates_that_kubectl_accepts() {
    let with = |more: &str| format!("{P256}\n{CLIENT}\n{more}");
    let version_1 = format!(
        "{P256}\n{}",
        CLIENT
            .replace("ecparam -name prime256v1 -genkey -noout", "genrsa")
            .replace("cli.ext", "none.ext")
    );
    for (name, steps, key) in [
        ("SEC1", with(""), "cli.key"),
        (
            "PKCS#8",
            with("pkcs8 -topk8 -nocrypt -in cli.key -out p8"),
            "p8",
        ),
        (
            "PKCS#8 labelled RSA",
            with(
                "pkcs8 -topk8 -nocrypt -in cli.key -out p8\nsed 's/PRIVATE KEY/RSA PRIVATE KEY/' p8 > k",
            ),
            "k",
        ),
        (
            "SEC1 labelled PRIVATE KEY",
            with("sed 's/EC PRIVATE KEY/PRIVATE KEY/' cli.key > k"),
            "k",
        ),
        (
            "any other label",
            with("sed 's/EC PRIVATE KEY/ANY PRIVATE KEY/' cli.key > k"),
            "k",
        ),
        (
            "with EC parameters before the key",
            with("ecparam -name prime256v1 -out params\ncat params cli.key > k"),
            "k",
        ),
        (
            "certificate and key in one file",
            with("cat cli.crt cli.key > k"),
            "k",
        ),
        (
            "P-521",
            with("").replace(
                "prime256v1 -genkey -noout -out cli",
                "secp521r1 -genkey -noout -out cli",
            ),
            "cli.key",
        ),
        (
            "RSA",
            with("").replace(
                "ecparam -name prime256v1 -genkey -noout -out cli.key",
                "genrsa -traditional -out cli.key",
            ),
            "cli.key",
        ),
        ("version 1", version_1, "cli.key"),
    ] {
        let files = Files::make(&steps);
        let failure = kubernetes(&files, "ca.crt", Some(["cli.crt", key]), true, false);
        assert_eq!(failure, None, "{name}");
    }
}

#[test]
fn client_certificates_that_kubectl_rejects() {
    let with = |more: &str| format!("{P256}\n{CLIENT}\n{more}");
    let stranger =
        with("req -x509 -newkey rsa:2048 -nodes -keyout x.key -subj /CN=x -days 2 -out x.crt");
    for (name, steps, client, message) in [
        (
            "none",
            with(""),
            None,
            "give one as `client-certificate` and `client-key` in the kubeconfig",
        ),
        (
            "of another CA",
            stranger.clone(),
            Some(["x.crt", "x.key"]),
            "it refused our client certificate",
        ),
        (
            "with the key of another certificate",
            stranger,
            Some(["cli.crt", "x.key"]),
            "is not the key of the client certificate",
        ),
        (
            "an encrypted key",
            with("pkcs8 -topk8 -in cli.key -passout pass:x -out k"),
            Some(["cli.crt", "k"]),
            "it is encrypted: decrypt it",
        ),
        (
            "an encrypted SEC1 key",
            with("ec -in cli.key -aes128 -passout pass:x -out k"),
            Some(["cli.crt", "k"]),
            "it is encrypted: decrypt it",
        ),
        (
            "no key",
            with(""),
            Some(["cli.crt", "cli.crt"]),
            "it holds no PEM block `PRIVATE KEY`",
        ),
    ] {
        let failure = kubernetes(&Files::make(&steps), "ca.crt", client, true, false).expect(name);
        assert!(failure.contains(message), "{name}: {failure}");
    }
}

/// Runs the program and etcdctl against etcd. Returns whether they reached it; both must agree.
fn etcd(url: &str, ca: &Path, client: Option<[&Path; 2]>) -> bool {
    let mut options = format!("--cacert={}", ca.display());
    if let Some([certificate, key]) = client {
        let _ = write!(
            options,
            " --cert={} --key={}",
            certificate.display(),
            key.display()
        );
    }
    let ours = vulcanized(&format!(
        "--owner t --dry-run --create-backends --timeout 20s --pods - --etcd {url} {options}"
    ))
    .input(pods().to_string())
    .run();
    let theirs = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url, "get", "x"])
        .args(options.split(' '))
        .output()
        .expect("etcdctl runs");
    let reached = ours.code == 0;
    assert_eq!(
        reached,
        theirs.status.success(),
        "etcdctl: {}\n{ours}",
        String::from_utf8_lossy(&theirs.stderr)
    );
    reached
}

#[test]
fn etcd_certificates_that_etcdctl_accepts() {
    let version_1 = CLIENT
        .replace("ecparam -name prime256v1 -genkey -noout", "genrsa")
        .replace("cli.ext", "none.ext");
    for (version, steps, ca) in [
        (Version::V34, format!("{P256}\n{version_1}"), "ca.crt"),
        (Version::V35, format!("{P256}\n{version_1}"), "ca.crt"),
        (
            Version::V34,
            format!("{P256}\n{CLIENT}").replace("prime256v1", "secp521r1"),
            "ca.crt",
        ),
        (
            Version::V35,
            format!("{P256}\n{CLIENT}").replace("-days 2", "-days 2 -sha512"),
            "ca.crt",
        ),
        (Version::V34, format!("{P256}\n{CLIENT}"), "srv.crt"),
    ] {
        let files = Files::make(&steps);
        let settings = Settings {
            tls: Some(Leaf {
                certificate: files.text("srv.crt"),
                key: files.text("srv.key"),
            }),
            client_ca: Some(files.text("ca.crt")),
            ..Settings::default()
        };
        let server = Etcd::set_up(version, &settings);
        let (certificate, key) = (files.path("cli.crt"), files.path("cli.key"));
        assert!(
            etcd(&server.url(), &files.path(ca), Some([&certificate, &key])),
            "{steps}"
        );
        assert!(!etcd(&server.url(), &files.path(ca), None), "{steps}");
    }
}

#[test]
fn etcd_with_auto_tls() {
    for version in [Version::V34, Version::V35] {
        let settings = Settings {
            https: true,
            arguments: vec!["--auto-tls".to_owned()],
            ..Settings::default()
        };
        let server = Etcd::set_up(version, &settings);
        assert!(etcd(
            &server.url(),
            &server.data("fixtures/client/cert.pem"),
            None
        ));
    }
}
