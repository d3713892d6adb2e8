//! How the program ends: each exit code, its number and its meaning.

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything is in sync, or was applied.
    Done,
    /// It failed.
    Failed,
    /// The options do not fit each other, or what they are applied to.
    Usage,
    /// The plan has alarms: see [`Plan::alarms`](crate::reconcile::plan::Plan::alarms). The number is that of
    /// `--alarm-exit-code`.
    Alarm(u8),
    /// `explain`: the pod is not published.
    Unpublished,
    /// A dry run with `--exit-code` found changes.
    Changes,
    /// The plan is not the one that `--expect` names: nothing was written after that.
    Unexpected,
}

/// What the exit codes mean, for the help and the manual page.
pub(crate) const MEANINGS: [(&str, &str); 6] = [
    ("0", "done, or in sync"),
    ("1", "failed; the next run continues"),
    ("2", "usage error: nothing was written"),
    (
        "3",
        "`explain`: the pod is not published; a run: something was held, kept everywhere, emptied, \
         over budget, out of scope, not shared, duplicate or in conflict, or a value stops the proxy; \
         the rest is done. `--alarm-exit-code` makes it another",
    ),
    ("4", "`--dry-run --exit-code`, and there are changes"),
    (
        "5",
        "the plan is not the one that `--expect` names: nothing was written",
    ),
];

/// Which one counts where several apply.
pub(crate) const ORDER: &str = "the worse wins: 1 over 5 over 3 over 4";

impl Exit {
    /// Its number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Alarm(code) => code,
            Self::Unpublished => 3,
            Self::Changes => 4,
            Self::Unexpected => 5,
        }
    }

    /// The end of a run whose plan has alarms and, for a dry run with `--exit-code`, changes. An alarm whose
    /// number is 0 must not hide changes.
    pub(crate) fn of(alarms: bool, changes: bool, alarm: u8) -> Self {
        match (alarms, changes) {
            (true, true) if alarm == 0 => Self::Changes,
            (true, _) => Self::Alarm(alarm),
            (false, true) => Self::Changes,
            (false, false) => Self::Done,
        }
    }
}
