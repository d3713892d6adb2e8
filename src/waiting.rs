//! Waiting: for calls that may never return, and with a notice for a person at a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Nobody asks before that.
const SOON: Duration = Duration::from_secs(2);

/// Does something that may take its time. Where stderr is a terminal, what is waited for is said there once it
/// has taken two seconds.
pub(crate) fn waiting<T>(for_what: &dyn Display, wait: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return wait();
    }
    let (done, ended) = mpsc::channel::<()>();
    let text = format!("waiting for {for_what}");
    thread::spawn(move || {
        if ended.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
            // Where it cannot be said there is nobody to read it.
            let _ = writeln!(io::stderr(), "{text}");
        }
    });
    let result = wait();
    drop(done);
    result
}

/// Runs a blocking call on a thread of its own. The receiver gets its result, and can time out.
pub(crate) fn in_background<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // The receiver is gone once it has timed out.
        let _ = sender.send(call());
    });
    receiver
}
