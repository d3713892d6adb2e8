//! How Go's standard library reads texts: both proxies are written in Go.

use std::borrow::Cow;

/// The text with all its letters in one case: equal for two texts exactly where Go's
/// `strings.EqualFold` says so.
pub(super) fn fold(text: &str) -> Cow<'_, str> {
    let plain = |c: u8| c.is_ascii() && !c.is_ascii_uppercase();
    if text.bytes().all(plain) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.chars().map(fold_char).collect())
    }
}

fn fold_char(c: char) -> char {
    /// The one character, if it is one.
    fn only(mut characters: impl Iterator<Item = char>) -> Option<char> {
        characters.next().filter(|_| characters.next().is_none())
    }
    // Go folds the dotless i with nothing.
    if c.is_ascii() || c == 'ı' {
        return c.to_ascii_lowercase();
    }
    let upper = only(c.to_uppercase()).unwrap_or(c);
    only(upper.to_lowercase()).unwrap_or(upper)
}

/// Whether `time.ParseDuration` takes a text: `1.5h`, `-300ms`, `0`, each number but that with its unit.
pub(super) fn is_duration(text: &str) -> bool {
    /// The units, and how many nanoseconds each is.
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let whole = &rest[..digits(rest)];
        rest = &rest[whole.len()..];
        let fraction = match rest.strip_prefix('.') {
            Some(after) => &after[..digits(after)],
            None => "",
        };
        if let Some(after) = rest.strip_prefix('.') {
            rest = &after[fraction.len()..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return false;
        }
        let unit = rest.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, after) = rest.split_at(unit.unwrap_or(rest.len()));
        rest = after;
        let Some((_, nanoseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return false;
        };
        let whole = if whole.is_empty() {
            Some(0)
        } else {
            whole.parse::<u64>().ok()
        };
        let value = whole.and_then(|whole| whole.checked_mul(*nanoseconds));
        // What is below a unit cannot overflow but by one: it is looked at in tenths of it.
        let Some(sum) = value.and_then(|value| total.checked_add(value)) else {
            return false;
        };
        if sum > 1 << 63 {
            return false;
        }
        total = sum;
    }
    negative || total < 1 << 63
}

/// Whether Go's `strconv.ParseBool` accepts a text.
pub(super) fn is_bool(text: &str) -> bool {
    const TRUTHS: [&str; 12] = [
        "1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False",
    ];
    TRUTHS.contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_folded_as_go_does() {
        for (a, b) in [
            ("Site1", "sITE1"),
            ("ſtats", "Stats"),
            ("\u{212a}ey", "key"),
            ("Σς", "σσ"),
            ("É", "é"),
            ("ẞ", "ß"),
        ] {
            assert_eq!(fold(a), fold(b), "{a} {b}");
        }
        for (a, b) in [("ı", "i"), ("İ", "i"), ("ß", "ss"), ("a", "b")] {
            assert_ne!(fold(a), fold(b), "{a} {b}");
        }
    }

    #[test]
    fn durations_are_read_as_go_does() {
        for good in [
            "0",
            "-0",
            "+5s",
            "1.5h",
            ".5s",
            "1.s",
            "1h2m3s",
            "300ms",
            "5µs",
            "5μs",
            "2562047h47m16s",
            "-9223372036854775808ns",
        ] {
            assert!(is_duration(good), "{good}");
        }
        for bad in [
            "",
            "-",
            "5",
            "4 s",
            "s",
            ".s",
            "5S",
            "1d",
            "five",
            "1h2",
            "2562048h",
            "9223372036854775808ns",
            " 1s",
            "1e3s",
        ] {
            assert!(!is_duration(bad), "{bad}");
        }
    }
}
