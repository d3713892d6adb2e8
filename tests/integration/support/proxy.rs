//! A proxy between the program and one server that drops requests or answers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};

/// What is lost after a number of bytes of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Requests arrive, their answers do not.
    Answers,
    /// Requests do not arrive.
    Requests,
    /// Requests arrive, their answers do not, and later connections are refused.
    Everything,
    /// Requests arrive, and the connection ends in place of their answers.
    Connection,
    /// The same, and later connections are refused.
    Server,
}

/// A proxy to a server on loopback.
pub struct Proxy {
    port: u16,
    dropped: Arc<AtomicUsize>,
}

impl Proxy {
    /// Forwards to `target` until `after` bytes of requests have passed, then drops requests or answers on that
    /// connection. Later connections work, unless everything is lost.
    pub fn start(target: u16, loss: Loss, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let sent = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&dropped);
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let lost = seen.load(Ordering::SeqCst) > 0;
                if lost && matches!(loss, Loss::Everything | Loss::Server) {
                    let _ = client.shutdown(Shutdown::Both);
                    continue;
                }
                let server =
                    TcpStream::connect(("127.0.0.1", target)).expect("the server is there");
                let wire = Wire {
                    loss: (!lost).then_some(loss),
                    after,
                    sent: Arc::clone(&sent),
                    dropped: Arc::clone(&seen),
                };
                wire.connect(client, server);
            }
        });
        Self { port, dropped }
    }

    /// Forwards to `target`, after resetting the first `closed` connections.
    pub fn resetting(target: u16, closed: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let dropped = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&dropped);
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if seen.load(Ordering::SeqCst) < closed {
                    seen.fetch_add(1, Ordering::SeqCst);
                    // Without time to linger the other side gets a reset.
                    let none = nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    };
                    setsockopt(&client, sockopt::Linger, &none).expect("it is set");
                    continue;
                }
                let server =
                    TcpStream::connect(("127.0.0.1", target)).expect("the server is there");
                let wire = Wire {
                    loss: None,
                    after: 0,
                    sent: Arc::default(),
                    dropped: Arc::default(),
                };
                wire.connect(client, server);
            }
        });
        Self { port, dropped }
    }

    /// The proxy's URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many bytes, or connections, were lost.
    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }
}

struct Wire {
    /// Nothing is lost on this connection without it.
    loss: Option<Loss>,
    after: usize,
    sent: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Wire {
    fn connect(self, client: TcpStream, server: TcpStream) {
        let twin = |stream: &TcpStream| stream.try_clone().expect("a second handle");
        let (up, down) = ((twin(&client), twin(&server)), (server, client));
        let Self {
            loss,
            after,
            sent,
            dropped,
        } = self;
        let requests = (Arc::clone(&sent), Arc::clone(&dropped));
        thread::spawn(move || {
            let (sent, dropped) = requests;
            forward(up, |bytes| {
                let sent = sent.fetch_add(bytes, Ordering::SeqCst) + bytes;
                if sent <= after || loss != Some(Loss::Requests) {
                    return Fate::Passes;
                }
                dropped.fetch_add(bytes, Ordering::SeqCst);
                Fate::Lost
            });
        });
        thread::spawn(move || {
            forward(down, |bytes| {
                let fate = match loss {
                    _ if sent.load(Ordering::SeqCst) <= after => Fate::Passes,
                    None | Some(Loss::Requests) => Fate::Passes,
                    Some(Loss::Answers | Loss::Everything) => Fate::Lost,
                    // What is as short as that is no answer, but a sign that a part of the request has arrived.
                    Some(Loss::Connection | Loss::Server) if bytes <= 60 => Fate::Passes,
                    Some(Loss::Connection | Loss::Server) => Fate::Ends,
                };
                if fate != Fate::Passes {
                    dropped.fetch_add(bytes, Ordering::SeqCst);
                }
                fate
            });
        });
    }
}

/// What becomes of some bytes.
#[derive(PartialEq, Eq)]
enum Fate {
    Passes,
    Lost,
    /// They are lost, and the connection ends.
    Ends,
}

/// Copies what passes, until one side ends; then both do.
fn forward((mut from, mut to): (TcpStream, TcpStream), mut fate: impl FnMut(usize) -> Fate) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let fate = fate(count);
        if fate == Fate::Ends || fate == Fate::Passes && to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
