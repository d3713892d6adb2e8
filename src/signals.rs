//! SIGTERM and SIGINT end a run at once while it lists, and after the transaction in flight while it applies.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Incoming;

use crate::kube;

/// The signal handlers of a run.
pub struct Signals {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    applying: bool,
    pending: Option<&'static str>,
}

impl Signals {
    /// Installs the handlers. PID 1 needs them: the kernel ignores both signals for it otherwise.
    ///
    /// # Errors
    /// The operating system's.
    pub fn install() -> io::Result<Self> {
        let mut incoming = Incoming::new([SIGTERM, SIGINT])?;
        let state = Arc::new(Mutex::<State>::default());
        let signals = Self {
            state: Arc::clone(&state),
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in incoming.forever() {
                    let name = if signal == SIGTERM {
                        "SIGTERM"
                    } else {
                        "SIGINT"
                    };
                    // Hold the lock until exit, so that applying cannot start.
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.pending = Some(name);
                    if !state.applying {
                        let message =
                            format!("error: ended by {name} before anything more was written\n");
                        let _ = io::stderr().write_all(message.as_bytes());
                        kube::kill_plugin();
                        std::process::exit(1);
                    }
                }
            })?;
        Ok(signals)
    }

    /// From now on a signal is only recorded: see [`Signals::pending`].
    pub fn enter_apply(&self) {
        self.state().applying = true;
    }

    /// From now on a signal ends the process at once. Returns the one that arrived while applying: the caller
    /// must act on it.
    #[must_use]
    pub fn leave_apply(&self) -> Option<&'static str> {
        let mut state = self.state();
        state.applying = false;
        state.pending
    }

    /// The signal that arrived while applying, if any.
    #[must_use]
    pub fn pending(&self) -> Option<&'static str> {
        self.state().pending
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
