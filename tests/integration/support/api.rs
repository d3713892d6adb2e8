//! A stand-in Kubernetes API server: it speaks HTTP or HTTPS on the wire, answers with recorded or made
//! lists, and does whatever else a server may do to its clients.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::certs::Authority;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub query: BTreeMap<String, String>,
    /// By name in lower case.
    pub headers: BTreeMap<String, String>,
    /// Which connection it came over, counted from 0.
    pub connection: usize,
    /// Whether the client showed a certificate.
    pub certificate: bool,
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Chunked,
    Length,
    /// By the end of the connection.
    Neither,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Stop sending after so many bytes of the body, and keep the connection open.
    pub stall: Option<usize>,
    /// Send nothing at all.
    pub silent: bool,
    /// Wait so long before each kibibyte of the body.
    pub drip: Option<Duration>,
}

impl Reply {
    /// A body of this kind, chunked as the real server does it.
    pub fn new(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), kind.to_owned())],
            body: body.into(),
            framing: Framing::Chunked,
            cut: None,
            stall: None,
            silent: false,
            drip: None,
        }
    }

    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// Asks the client to come back later than any run may take: a run that would ask again ends at once.
    pub fn retry_after_the_run(self) -> Self {
        self.header("Retry-After", "3600")
    }

    /// A recorded answer: `errors/401-bad-token`, with its headers.
    pub fn recorded(name: &str) -> Self {
        let file = |ending: &str| {
            let path = format!(
                "{}/fixtures/kube/{name}.{ending}",
                env!("CARGO_MANIFEST_DIR")
            );
            std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let head = String::from_utf8(file("headers")).expect("headers are text");
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .expect("a status line");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let framing = ["content-length", "transfer-encoding", "connection"];
        let headers = headers.filter(|(name, _)| !framing.contains(&name.to_lowercase().as_str()));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            headers: headers.collect(),
            ..Self::new(status.parse().expect("a status"), "", file("body"))
        }
    }

    /// Sets a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// The server. It ends with the test.
pub struct Api {
    address: SocketAddr,
    authority: Option<Authority>,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

/// How it listens.
#[derive(Default)]
pub struct Listen<'l> {
    /// Over TLS, with a certificate for these names.
    pub hosts: Option<&'l [&'l str]>,
    /// Only for clients with a certificate of its own authority.
    pub client_certificate: bool,
    /// Asks clients for such a certificate, and takes those without one, too.
    pub client_certificate_asked: bool,
}

impl Api {
    /// Plain HTTP. `handler` gets each request and how many came before it.
    pub fn start(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(&Listen::default(), handler)
    }

    /// HTTPS, with a certificate for 127.0.0.1.
    pub fn tls(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(
            &Listen {
                hosts: Some(&["127.0.0.1"]),
                ..Listen::default()
            },
            handler,
        )
    }

    /// As `listen` says.
    pub fn listen(
        listen: &Listen,
        handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("an address");
        let authority = listen.hosts.map(|_| Authority::new());
        let tls = authority.as_ref().map(|authority| {
            tls(
                authority,
                listen.hosts.unwrap_or_default(),
                listen.client_certificate,
                listen.client_certificate_asked,
            )
        });
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let handler: Arc<Handler> = Arc::new(handler);
        let count = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let _ = stream.set_nodelay(true);
                // On loopback, one that paces what is sent makes times a matter of luck.
                let _ = setsockopt(&stream, sockopt::TcpCongestion, &"reno".into());
                let (seen, count) = (Arc::clone(&seen), Arc::clone(&count));
                let (handler, tls) = (Arc::clone(&handler), tls.clone());
                thread::spawn(move || {
                    // A client may close at any time: that ends this connection, not the test.
                    let _ = match tls {
                        None => serve(stream, (number, false), &seen, &count, &*handler),
                        Some(config) => {
                            let connection = ServerConnection::new(config).expect("a TLS server");
                            let mut stream = StreamOwned::new(connection, stream);
                            while stream.conn.is_handshaking() {
                                if stream.conn.complete_io(&mut stream.sock).is_err() {
                                    return;
                                }
                            }
                            let certificate = stream.conn.peer_certificates().is_some();
                            serve(stream, (number, certificate), &seen, &count, &*handler)
                        }
                    };
                });
            }
        });
        Self {
            address,
            authority,
            requests,
            stop,
        }
    }

    /// Serves these pods, over plain HTTP, in pages of `page` pods.
    pub fn pods(pods: Vec<Value>, page: usize) -> Self {
        Self::start(move |request, _| list(&pods, request, page))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// The authority that signed its certificate.
    pub fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("it speaks TLS")
    }

    /// What was asked of it so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// Writes a kubeconfig for it, with these fields for cluster and user beside those it needs.
    pub fn kubeconfig(&self, cluster: &Value, user: &Value) -> tempfile::NamedTempFile {
        use base64::Engine as _;
        let mut whole = json!({ "server": self.url() });
        if let Some(authority) = &self.authority {
            let ca = base64::prelude::BASE64_STANDARD.encode(&authority.pem);
            whole["certificate-authority-data"] = Value::String(ca);
        }
        for (key, value) in cluster.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": whole }],
            "users": [{ "name": "test", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(config.to_string().as_bytes())
            .expect("it is written");
        file
    }

    /// The certificate of its authority, PEM; empty where it speaks plain HTTP.
    pub fn ca(&self) -> &str {
        self.authority
            .as_ref()
            .map_or("", |authority| &authority.pem)
    }

    /// A kubeconfig with nothing special in it.
    pub fn plain_kubeconfig(&self) -> tempfile::NamedTempFile {
        self.kubeconfig(&json!({}), &json!({}))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, so that it sees `stop`.
        let _ = TcpStream::connect(self.address);
    }
}

fn tls(authority: &Authority, hosts: &[&str], client: bool, asked: bool) -> Arc<ServerConfig> {
    let leaf = authority.leaf("server", hosts);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = if client || asked {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("a CA");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if client {
            verifier
        } else {
            verifier.allow_unauthenticated()
        };
        builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).expect("PEM");
    Arc::new(
        builder
            .with_single_cert(vec![certificate], key)
            .expect("they fit"),
    )
}

fn serve(
    mut stream: impl Read + Write,
    (connection, certificate): (usize, bool),
    seen: &Mutex<Vec<Request>>,
    count: &AtomicUsize,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break buffer.drain(..end + 4).collect::<Vec<_>>();
            }
            let mut part = [0; 4096];
            let read = stream.read(&mut part)?;
            if read == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&part[..read]);
            // TLS, say: a real server does not wait for the end of what is no HTTP.
            if !buffer[0].is_ascii_alphabetic() {
                return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            }
        };
        let request = Request {
            connection,
            certificate,
            ..parse(&String::from_utf8_lossy(&head))
        };
        seen.lock().expect("no panic").push(request.clone());
        let reply = handler(&request, count.fetch_add(1, Ordering::Relaxed));
        if !send(&mut stream, reply)? {
            return Ok(());
        }
    }
}

fn parse(head: &str) -> Request {
    let mut lines = head.lines();
    let target = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let headers = lines.filter_map(|line| line.split_once(": "));
    Request {
        path: path.to_owned(),
        query: query
            .map(|(name, value)| (name.to_owned(), decoded(value)))
            .collect(),
        headers: headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        connection: 0,
        certificate: false,
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let code = std::str::from_utf8(&tail[..2]).expect("two digits");
            bytes.push(u8::from_str_radix(code, 16).expect("hexadecimal"));
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Sends a reply. `false` if the connection is done with.
fn send(stream: &mut (impl Read + Write), reply: Reply) -> std::io::Result<bool> {
    let Reply {
        status,
        headers,
        body,
        framing,
        cut,
        stall,
        silent,
        drip,
    } = reply;
    let wait_until_left = |stream: &mut dyn Read| {
        let mut nothing = [0; 64];
        while stream.read(&mut nothing).is_ok_and(|read| read > 0) {}
    };
    if silent {
        wait_until_left(stream);
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in &headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    let end_of_head = match framing {
        Framing::Chunked => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        Framing::Length => format!("Content-Length: {}\r\n\r\n", body.len()),
        Framing::Neither => "Connection: close\r\n\r\n".to_owned(),
    };
    // Buffered: not one packet and one TLS record for each piece.
    let mut out = BufWriter::with_capacity(1 << 16, &mut *stream);
    out.write_all((head + &end_of_head).as_bytes())?;
    let end = cut.or(stall).unwrap_or(body.len()).min(body.len());
    for part in body[..end].chunks(if drip.is_some() { 1024 } else { 8192 }) {
        if let Some(pause) = drip {
            out.flush()?;
            thread::sleep(pause);
        }
        if framing == Framing::Chunked {
            write!(out, "{:x}\r\n", part.len())?;
        }
        out.write_all(part)?;
        if framing == Framing::Chunked {
            out.write_all(b"\r\n")?;
        }
    }
    let whole = cut.is_none() && stall.is_none();
    if whole && framing == Framing::Chunked {
        out.write_all(b"0\r\n\r\n")?;
    }
    out.flush()?;
    drop(out);
    if stall.is_some() {
        wait_until_left(stream);
    }
    Ok(whole && framing != Framing::Neither)
}

/// Answers a list of these pods as the real server would: by namespace, by equality of labels and of
/// `status.phase`, in pages.
pub fn list(pods: &[Value], request: &Request, page: usize) -> Reply {
    let namespace = request.path.strip_prefix("/api/v1/namespaces/");
    let namespace = namespace.and_then(|rest| rest.strip_suffix("/pods"));
    let selected = |pod: &&Value| {
        let meta = &pod["metadata"];
        let labels = request
            .query
            .get("labelSelector")
            .map_or("", String::as_str);
        let labels = labels
            .split(',')
            .filter(|part| !part.is_empty())
            .all(|part| {
                let (key, value) = part.split_once('=').expect("an equality");
                meta["labels"][key] == value
            });
        let fields = request
            .query
            .get("fieldSelector")
            .map_or("", String::as_str);
        let fields = fields
            .split(',')
            .filter(|part| !part.is_empty())
            .all(|part| match part.split_once("!=") {
                Some(("status.phase", phase)) => pod["status"]["phase"] != phase,
                _ => panic!("this stand-in does not know the field selector {part}"),
            });
        labels && fields && namespace.is_none_or(|namespace| meta["namespace"] == namespace)
    };
    let chosen = pods.iter().filter(selected).collect::<Vec<_>>();
    let start = request
        .query
        .get("continue")
        .map_or(0, |token| token.parse().expect("a token"));
    let end = (start + page).min(chosen.len());
    let mut metadata = json!({ "resourceVersion": "4711" });
    if end < chosen.len() {
        metadata["continue"] = Value::String(end.to_string());
    }
    Reply::json(
        200,
        &json!({
            "kind": "PodList",
            "apiVersion": "v1",
            "metadata": metadata,
            "items": chosen[start..end],
        }),
    )
}

/// A ready pod with one port, as small as it can be.
pub fn pod(namespace: &str, name: &str, app: &str, ip: &str) -> Value {
    json!({
        "metadata": { "namespace": namespace, "name": name, "labels": { "app": app } },
        "spec": { "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// Pod `web-n` of app `web` in namespace `default`, at 10.0.0.n.
pub fn web(n: u32) -> Value {
    let ip = format!("10.0.{}.{}", n / 250, n % 250);
    pod("default", &format!("web-{n}"), "web", &ip)
}

/// Pods as `kubectl get pods -o json` prints them.
pub fn kubectl(pods: impl IntoIterator<Item = Value>) -> String {
    let pods = pods.into_iter().map(|mut pod| {
        pod["kind"] = json!("Pod");
        pod
    });
    json!({ "kind": "List", "items": pods.collect::<Vec<_>>() }).to_string()
}
